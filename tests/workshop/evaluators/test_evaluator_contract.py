"""What holds for every evaluator, whoever wrote it; those that train are opened on the real digits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import sharing

from kdnas.workshop.evaluators import EVALUATORS, Evaluator, open_evaluator, open_member
from kdnas.workshop.jobs import search_job

TRAINING = [name for name in EVALUATORS.names() if "family" in getattr(EVALUATORS.get(name), "needs", ())]


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


@pytest.mark.parametrize("name", TRAINING)
def test_an_evaluator_that_trains_answers_a_job_the_same_in_any_process(study, ready, name):
    config = sharing.load(study.folder, "rungs=[]", f"evaluator={name}").config
    context = ready.workplan.context
    evaluators = [open_member(context, name), open_member(context, name)]
    arch = evaluators[0].arch(study.space.random(np.random.default_rng(3)))
    job = search_job(config, arch, {})
    assert job.evaluator == name
    results = [evaluator(job) for evaluator in evaluators]
    assert results[0].values == results[1].values
    assert all(math.isfinite(value) for value in results[0].values.values())
    assert set(results[0].values) >= {"accuracy", "macs", "params"}
    assert results[0].train_seconds >= 0
    assert job.fidelity == config.fidelities[-1]


@pytest.mark.parametrize("name", TRAINING)
def test_what_is_opened_beside_another_shares_its_data_and_teacher(ready, name):
    first = open_member(ready.workplan.context, "scratch")
    beside = open_member(dataclasses.replace(ready.workplan.context, beside=first), name)
    assert beside.workshop is first.workshop


def test_several_evaluators_share_one_price_and_one_voice(ready):
    together = open_evaluator(ready.workplan.context)
    said: list[str] = []
    together.say = said.append
    for name in ("supernet", "finetune", "scratch"):
        together._member(name).say(name)
    assert said == ["supernet", "finetune", "scratch"]
    assert set(together.fingerprints) == {"data", "teacher"}
