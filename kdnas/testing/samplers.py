"""What every sampler keeps, through the proposals that a search makes: in the space, valid, new, reproducible."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

from kdnas.controller.proposals import ValidProposals
from kdnas.core.arch import Scalar
from kdnas.core.block_library import BlockLibrary, Entry
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import ACCURACY, Constraint, Quantity
from kdnas.core.space import Assignment, Choice, Condition, SearchSpace
from kdnas.record.storage import distributions
from kdnas.samplers import SAMPLERS, SamplerContext
from kdnas.testing._member import MemberConformance

optuna.logging.set_verbosity(optuna.logging.ERROR)

MACS = Quantity("macs", "MACs", "minimize", "cheap")
PARAMS = Quantity("params", "parameters", "minimize", "cheap")
LATENCY = Quantity("latency_ms", "ms", "minimize", "measured")
OBJECTIVES = (ACCURACY, MACS, PARAMS, LATENCY)
REFERENCE = {"accuracy": 0.0, "macs": 4000.0, "params": 200.0, "latency_ms": 30.0}
SPACE = SearchSpace(
    "conformance",
    "resnet",
    (Choice("depth", (0, 1, 2, 3)), Choice("width", (8, 16, 24, 32)), Choice("skip", ("identity", "none"))),
    (Condition("width", "depth", (1, 2, 3)), Condition("skip", "depth", (1, 2, 3))),
)
RUNGS = (Fidelity(1), Fidelity(8))
RATE = FloatDistribution(0.01, 1.0, log=True)


def student(space: SearchSpace, params: Mapping[str, Scalar]) -> tuple[tuple[str, Any], ...]:
    """Return the student that `params` spell: choices that are not active do not count, settings do."""
    settings = {name: value for name, value in params.items() if name not in {c.name for c in space.choices}}
    choices = {name: value for name, value in params.items() if name not in settings}
    return tuple(sorted({**space.active(choices), **settings}.items()))


def price(params: Mapping[str, Scalar]) -> dict[str, float]:
    """Return the cheap costs of a proposal."""
    depth, width = int(params["depth"]), int(params["width"])
    return {"macs": float(1 + depth * width**2), "params": float(1 + depth * width)}


def values(params: Mapping[str, Scalar], fidelity: Fidelity = RUNGS[-1]) -> dict[str, float]:
    """Return what a training of `fidelity` finds."""
    depth, width = int(params["depth"]), int(params["width"])
    accuracy = 1 - 1 / (1 + depth * width / 20) - 0.05 * (params["skip"] == "none") - 0.2 / fidelity.epochs
    return {"accuracy": accuracy, "latency_ms": 1.0 + depth * width / 5, **price(params)}


def library(space: SearchSpace) -> BlockLibrary:
    """Return a library of one block that is ruled by all choices of `space`: its predictions are not far off."""
    return BlockLibrary(
        Entry(
            "block",
            {name: (value,) for name, value in params.items()},
            1 - values(params)["accuracy"],
            0.0,
            price(params),
        )
        for params in space.enumerate()
    )


class Loop:
    """A search without training: asks and tells. Results of `waiting` proposals come late, as with several workers.

    `build` makes the sampler of a context.
    """

    def __init__(
        self,
        build: Callable[[SamplerContext], optuna.samplers.BaseSampler],
        seed: int = 0,
        limit: float = np.inf,
        space: SearchSpace = SPACE,
        objectives: int = 2,
        rungs: tuple[Fidelity, ...] = (),
        tuned: Mapping[str, FloatDistribution] | None = None,
        waiting: int = 0,
    ):
        self.build, self.seed, self.limit, self.space, self.rungs = build, seed, limit, space, rungs
        self.objectives, self.tuned, self.waiting = OBJECTIVES[:objectives], dict(tuned or {}), waiting
        self.domain = distributions(space, {}) | self.tuned
        self.study = optuna.create_study(
            study_name="loop",
            storage=optuna.storages.InMemoryStorage(),
            directions=[objective.direction for objective in self.objectives],
        )
        self.seen: set[Any] = set()
        self.proposals: list[Assignment] = []
        self.running: list[tuple[optuna.Trial, Fidelity]] = []
        self.exhausted = ""

    def acceptable(self, params: Mapping[str, Scalar]) -> bool:
        """Return whether a proposal is new and within the limit."""
        return student(self.space, params) not in self.seen and price(params)["macs"] <= self.limit

    def context(self, number: int) -> SamplerContext:
        """Return the context of the sampler for proposal `number`."""
        return SamplerContext(
            self.space,
            self.objectives,
            60,
            1000 * self.seed + number,
            price=price,
            acceptable=self.acceptable,
            reference_point={objective.name: REFERENCE[objective.name] for objective in self.objectives},
            fidelities=self.rungs,
            tuned=self.tuned,
            limits=(Constraint("macs", "<=", self.limit),) if np.isfinite(self.limit) else (),
            library=library(self.space),
        )

    def step(self) -> None:
        """Ask once, and report the results that are due."""
        number = len(self.proposals)
        sampler = ValidProposals(
            self.build(self.context(number)),
            self.domain,
            self.acceptable,
            seed=1000 * self.seed + number,
            fidelities=self.rungs,
        )
        self.study.sampler = sampler
        trial = self.study.ask(fixed_distributions=self.domain)
        self.exhausted = sampler.exhausted
        if self.exhausted:
            return
        self.proposals.append(dict(trial.params))
        self.seen.add(student(self.space, trial.params))
        fidelity = self.rungs[0] if self.rungs else RUNGS[-1]
        self.describe(trial, fidelity)
        self.running.append((trial, fidelity))
        while len(self.running) > self.waiting:
            self.report_score(*self.running.pop(0))
        if self.rungs and number % 3 == 2:  # every third student is trained on
            self.study.enqueue_trial(self.proposals[-2])
            promoted = self.study.ask(fixed_distributions=self.domain)
            self.describe(promoted, self.rungs[-1])
            self.report_score(promoted, self.rungs[-1])

    def describe(self, trial: optuna.Trial, fidelity: Fidelity) -> None:
        """Note what a search notes of a trial."""
        trial.set_user_attr("arch_id", str(student(self.space, trial.params)))
        trial.set_user_attr("tuned", {})
        trial.set_user_attr("fidelity", fidelity.as_dict())

    def report_score(self, trial: optuna.Trial, fidelity: Fidelity) -> None:
        """Tell the scores of a trial."""
        known = values(trial.params, fidelity)
        trial.set_user_attr("result", {"values": known})
        self.study.tell(trial, [known[objective.name] for objective in self.objectives])

    def run(self, count: int) -> list[Assignment]:
        """Return the proposals once there are `count`, or no more."""
        while len(self.proposals) < count and not self.exhausted:
            self.step()
        return self.proposals


def _assert_in_space(loop: Loop) -> None:
    for params in loop.proposals:
        for choice in loop.space.choices:
            assert params[choice.name] in choice.values
    assert len({student(loop.space, params) for params in loop.proposals}) == len(loop.proposals)


class SamplerConformance(MemberConformance):
    """The suite of samplers."""

    registry = SAMPLERS

    def loop(self, **options: Any) -> Loop:
        """Return a search by this sampler."""
        return Loop(self.build, **options)

    def test_proposals_are_in_the_space_and_never_repeat(self) -> None:
        loop = self.loop()
        assert len(loop.run(14)) == 14
        _assert_in_space(loop)

    def test_proposals_meet_the_cheap_constraint(self) -> None:
        assert all(price(params)["macs"] <= 600 for params in self.loop(limit=600).run(10))

    def test_the_same_seed_and_history_give_the_same_proposals(self) -> None:
        first = self.loop(seed=3).run(14)
        assert self.loop(seed=3).run(14) == first
        assert self.loop(seed=4).run(14) != first  # what begins with a plan draws after it

    def test_a_resumed_search_goes_on_as_if_it_had_not_stopped(self) -> None:
        whole, resumed = self.loop(seed=5), self.loop(seed=5)
        whole.run(12)
        resumed.run(7)
        resumed.study = optuna.load_study(study_name="loop", storage=resumed.study._storage)
        assert resumed.run(12) == whole.proposals

    def test_an_exhausted_space_ends_cleanly(self) -> None:
        narrow = Choice("width", (8, 16))
        loop = self.loop(space=dataclasses.replace(SPACE, choices=(SPACE.choices[0], narrow, SPACE.choices[2])))
        loop.run(1000)
        assert loop.exhausted
        assert len(loop.proposals) == 3 * 2 * 2 + 1  # three active depths with all else, and depth 0 alone

    @pytest.mark.parametrize("objectives", [3, 4])
    def test_three_and_four_objectives(self, objectives: int) -> None:
        loop = self.loop(objectives=objectives)
        assert len(loop.run(12)) == 12
        _assert_in_space(loop)

    def test_several_workers_get_different_students(self) -> None:
        loop = self.loop(waiting=4)
        assert len(loop.run(14)) == 14
        _assert_in_space(loop)

    def test_a_search_over_rungs(self) -> None:
        loop = self.loop(rungs=RUNGS)
        assert len(loop.run(13)) == 13
        _assert_in_space(loop)

    def test_tuned_settings_stay_within_their_range(self) -> None:
        loop = self.loop(tuned={"learning_rate": RATE})
        assert len(loop.run(13)) == 13
        rates = {float(params["learning_rate"]) for params in loop.proposals}
        assert all(0.01 <= rate <= 1.0 for rate in rates)
        assert len(rates) > 1
