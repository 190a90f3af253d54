"""What every evaluator keeps, on a study that it can score the students of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdnas.core.objective import SCORES
from kdnas.record.records import Result
from kdnas.study.config import StudyConfig
from kdnas.testing._member import MemberConformance
from kdnas.workshop.evaluators import EVALUATORS, Evaluator, EvaluatorContext
from kdnas.workshop.jobs import search_job


class EvaluatorConformance(MemberConformance):
    """The suite of evaluators."""

    registry = EVALUATORS

    @pytest.fixture
    def context(self) -> EvaluatorContext:
        """What it is opened from: a study, its space, folders. Has to be stated by the suite of a member."""
        raise NotImplementedError("state a fixture `context` that returns an EvaluatorContext")

    @pytest.fixture
    def study(self, context: EvaluatorContext) -> StudyConfig:
        """The study whose jobs it answers, where that is not the context's own."""
        return context.config

    @pytest.fixture
    def pair(self, context: EvaluatorContext) -> tuple[Evaluator, Evaluator]:
        """Two of it, opened from one context, as two workers have them."""
        first, second = (self.build(context) for _ in range(2))
        return first, second

    def test_it_says_what_it_needs(self) -> None:
        member = EVALUATORS.get(self._member)
        assert set(getattr(member, "needs", ())) <= {"data", "teacher", "family"}
        assert isinstance(getattr(member, "continues", False), bool)

    def test_it_knows_the_objectives_the_score_first(
        self, pair: tuple[Evaluator, Evaluator], study: StudyConfig
    ) -> None:
        quantities = pair[0].quantities
        assert next(iter(quantities)) in SCORES
        assert all(quantity.name == name for name, quantity in quantities.items())
        assert set(study.objectives) <= set(quantities)
        assert all(quantities[name].kind == "measured" for name in pair[0].measured)

    def test_prices_are_cheap_quantities_and_the_same_each_time(self, pair: tuple[Evaluator, Evaluator]) -> None:
        rng = np.random.default_rng(1)
        for _ in range(5):
            arch = pair[0].arch(pair[0].context.space.random(rng))
            price = pair[0].price(arch)
            assert price == pair[1].price(arch)
            assert all(math.isfinite(value) for value in price.values())
            assert all(pair[0].quantities[name].kind == "cheap" for name in price)

    def test_what_it_rests_on_is_recorded(self, pair: tuple[Evaluator, Evaluator]) -> None:
        assert dict(pair[0].fingerprints) == dict(pair[1].fingerprints)
        recorded = {**pair[0].fingerprints, **pair[0].description}
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in recorded.items())

    def test_a_job_has_the_same_result_in_any_process(
        self, pair: tuple[Evaluator, Evaluator], study: StudyConfig
    ) -> None:
        arch = pair[0].arch(pair[0].context.space.random(np.random.default_rng(3)))
        job = search_job(study, arch, {})
        results = [evaluator(job) for evaluator in pair]
        assert all(isinstance(result, Result) for result in results)
        assert results[0].values == results[1].values
        assert set(results[0].values) >= set(study.objectives)
        assert all(math.isfinite(value) for value in results[0].values.values())
        assert results[0].train_seconds >= 0
        assert job.fidelity == study.fidelities[-1]
