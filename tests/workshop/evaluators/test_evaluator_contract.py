"""What holds for every evaluator, whoever wrote it; those that train are opened on the real digits."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import scored_study
import sharing

from kdnas.core.fidelity import SearchStart
from kdnas.study.loading import load_study
from kdnas.testing import EvaluatorConformance, suites
from kdnas.workshop.evaluators import EVALUATORS, EvaluatorContext, open_evaluator
from kdnas.workshop.jobs import search_job

TRAINING = [name for name in EVALUATORS.names() if "family" in getattr(EVALUATORS.get(name), "needs", ())]


@pytest.fixture(scope="module")
def tiny_rungs(tmp_path_factory):
    return sharing.load(sharing.write(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def ready(tiny_rungs, tmp_path_factory):
    return sharing.prepared(tiny_rungs, tmp_path_factory.mktemp("runs") / "ready")


class Trains(EvaluatorConformance):
    @pytest.fixture
    def context(self, ready):
        return ready.workplan.context


class LooksUp(EvaluatorConformance):
    """Of a study whose scores a function gives, or the same numbers as a table."""

    @property
    def options(self):
        if self.member == "module":
            return {"function": "score.py:score", "price": "score.py:price"}
        values = {"accuracy": {"column": "score"}, "macs": {"column": "macs"}}
        return {"file": "scores.csv", "key": "{a}-{b}", "key_columns": ["student"], "values": values, "full_epochs": 1}

    @pytest.fixture
    def context(self, tmp_path):
        folder = scored_study.write(tmp_path)
        study = load_study(folder)
        rows = [f"{a}-{b},{1 - 1 / (1 + a + b)},{1000 * (a + b)}" for a in range(1, 9) for b in range(1, 9)]
        (folder / "scores.csv").write_text("\n".join(["student,score,macs", *rows]))
        return EvaluatorContext(study.config, study.space, tmp_path, folder, tmp_path, "cpu")


globals().update(suites(Trains, *(name for name in EVALUATORS.names() if name not in TRAINING)))
globals().update(suites(LooksUp, *TRAINING))


@pytest.mark.parametrize("start", get_args(SearchStart))
def test_a_job_has_the_same_answer_in_any_process(tiny_rungs, ready, start):
    rungs = "rungs=[]" if start == "random" else "rungs=[{epochs: 0}, {epochs: 1}]"
    config = sharing.load(tiny_rungs.folder, rungs, "training.epochs=1", f"start={start}").config
    context = ready.workplan.context
    evaluators = [open_evaluator(context), open_evaluator(context)]
    arch = evaluators[0].arch(tiny_rungs.space.random(np.random.default_rng(3)))
    for rung, fidelity in enumerate(config.fidelities):
        job = search_job(config, arch, {}, rung)
        assert (job.start, job.fidelity) == (start, fidelity)
        results = [evaluator(job) for evaluator in evaluators]
        assert results[0].values == results[1].values
        assert all(math.isfinite(value) for value in results[0].values.values())
        assert set(results[0].values) >= {"accuracy", "macs", "params"}
        assert results[0].train_seconds >= 0
