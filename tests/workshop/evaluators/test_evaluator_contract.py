"""What holds for every evaluator, whoever wrote it; those that train are opened on the real digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sharing

from kdnas.core.fidelity import STARTS
from kdnas.workshop.evaluators import EVALUATORS, Evaluator, open_evaluator
from kdnas.workshop.jobs import search_job


@pytest.mark.parametrize("name", EVALUATORS.names())
def test_a_member_says_what_it_is_and_needs(name):
    member = EVALUATORS.get(name)
    assert issubclass(member, Evaluator)
    assert EVALUATORS.summary(name).endswith(".")
    assert set(member.needs) <= {"data", "teacher", "family"}
    assert isinstance(member.continues, bool)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return sharing.load(sharing.write(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def ready(study, tmp_path_factory):
    return sharing.prepared(study, tmp_path_factory.mktemp("runs") / "ready")


@pytest.mark.parametrize("start", STARTS)
def test_a_job_has_the_same_answer_in_any_process(study, ready, start):
    rungs = "rungs=[]" if start == "random" else "rungs=[{epochs: 0}, {epochs: 1}]"
    config = sharing.load(study.folder, rungs, "training.epochs=1", f"start={start}").config
    context = ready.workplan.context
    evaluators = [open_evaluator(context), open_evaluator(context)]
    arch = evaluators[0].arch(study.space.random(np.random.default_rng(3)))
    for rung, fidelity in enumerate(config.fidelities):
        job = search_job(config, arch, {}, rung)
        assert (job.start, job.fidelity) == (start, fidelity)
        results = [evaluator(job) for evaluator in evaluators]
        assert results[0].values == results[1].values
        assert all(math.isfinite(value) for value in results[0].values.values())
        assert set(results[0].values) >= {"accuracy", "macs", "params"}
        assert results[0].train_seconds >= 0
