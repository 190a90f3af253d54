"""The evaluator that trains: what it measures when, what it tells of the teacher, and how it prices by a table."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from trainings import Tape

from kdnas.core.seeds import derive_seed
from kdnas.students import sibling_family
from kdnas.study.loading import load_study
from kdnas.training.loop import distil, train
from kdnas.training.packing import Packing
from kdnas.training.teacher_cache import TeacherCache
from kdnas.workshop.evaluators import EvaluatorContext, Workplan, open_evaluator
from kdnas.workshop.jobs import Before, Way, final_job, search_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("study"))


def opened(folder, *overrides):
    study = load_study(folder, overrides)
    cache = Path(os.environ["KDNAS_CACHE"])
    context = EvaluatorContext(study.config, study.space, folder, folder, cache, "cpu")
    return study.config, open_evaluator(context)


def student(evaluator, seed=0):
    return evaluator.arch(evaluator.context.space.random(np.random.default_rng(seed)))


def result(config, evaluator):
    return evaluator(search_job(config, student(evaluator), {}))


def test_a_student_is_taught_by_what_is_trained_before_it(folder):
    config, evaluator = opened(folder, "final={route: assistants, epochs: 3}")
    workshop, (small, large) = evaluator.workshop, [student(evaluator, seed) for seed in (0, 1)]
    job = final_job(config, 0, small, {}, 0, None, Way("assistants", (Before(large, 1),), 2))
    found = evaluator(dataclasses.replace(job, checkpoint=None))

    def trained(arch, epochs, seed, views, teaching):
        recipe = job.recipe.model_copy(update={"training": job.recipe.training.model_copy(update={"epochs": epochs})})
        network = workshop.begin(arch, "random", seed)
        return distil(
            network, teaching, workshop.share(1.0), workshop.validation, recipe,
            data=workshop.data, seed=seed, view_seed=views, device=workshop.device,
        )  # fmt: skip

    seed, views = derive_seed(job.init_seed, "before", 0, large.arch_id), derive_seed(job.view_seed, "before", 0)
    assistant = trained(large, 1, seed, views, workshop.teachers).network
    by_hand = trained(small, 2, job.init_seed, job.view_seed, workshop.as_teacher("assistant", assistant))
    assert found.values["accuracy"] == by_hand.score
    assert job.fidelity == config.final_fidelity
    assert job.fidelity.words == "3 epochs, by assistants"
    direct = final_job(config, 0, small, {}, 0)
    assert evaluator(dataclasses.replace(direct, checkpoint=None)).values["accuracy"] != found.values["accuracy"]


def test_peers_may_be_students_of_other_kinds(folder):
    small = {"stem_width": 4, "stage1.depth": 1, "stage1.width": 4, "stage1.bottleneck": "plain", "stage1.skip": "none"}
    inverted = {"stem_width": 4, "stage1.depth": 1, "stage1.width": 8, "stage1.expand": 2, "stage1.kernel": 3}
    inverted |= {"stage1.squeeze_excite": False, "stage1.skip": "none"}
    peers = [{"family": "resnet", "choices": small}, {"family": "mobilenet", "choices": inverted}]
    losses = "losses: [{type: kd, of: peers}]"
    config, evaluator = opened(folder, f"distillation={{{losses}, peers: {json.dumps(peers)}}}", "training.epochs=1")
    job, workshop = search_job(config, student(evaluator), {}), evaluator.workshop
    families = [sibling_family(workshop.family, peer["family"]) for peer in peers]
    others = []
    for place, (family, peer) in enumerate(zip(families, peers, strict=True), 1):
        torch.manual_seed(derive_seed(job.init_seed, "peer", place))
        others.append(family.build(family.canonical(peer["choices"])))
    by_hand = distil(
        workshop.begin(job.arch, "random", job.init_seed), None, workshop.share(1.0), workshop.validation, job.recipe,
        data=workshop.data, seed=job.init_seed, view_seed=job.view_seed, device=workshop.device, peers=others,
    )  # fmt: skip
    assert evaluator(job).values["accuracy"] == by_hand.score


def test_what_decides_nothing_is_not_measured_in_a_trial_but_on_a_finalist(folder):
    config, evaluator = opened(folder, "costs={peak_memory_bytes: {}}", "training.epochs=1")
    assert result(config, evaluator).measurements == {}
    assert set(evaluator.measure(student(evaluator))) == {"peak_memory_bytes"}


def test_what_is_bounded_is_measured_before_training(folder):
    config, evaluator = opened(folder, "constraints=[peak_memory_bytes<=1]")
    refused = result(config, evaluator)
    assert set(refused.measurements) == {"peak_memory_bytes"}
    assert refused.infeasible.startswith("breaks peak_memory_bytes<=1 (peak_memory_bytes is ")
    assert "accuracy" not in refused.values


def test_a_trial_tells_where_its_time_went(folder):
    config, evaluator = opened(folder, "training.epochs=1")
    profile = result(config, evaluator).profile
    assert set(profile) >= {"build", "teacher", "data", "student", "evaluation"}
    assert all(seconds >= 0 for seconds in profile.values())
    assert profile["student"] > 0


def test_a_trial_tells_what_slowed_it(folder, tmp_path, monkeypatch):
    config, evaluator = opened(folder, "training.epochs=1")
    assert result(config, evaluator).notes == ()
    monkeypatch.setattr("kdnas.training.step.recorder_for", lambda device: Tape(fail="operation not permitted"))
    monkeypatch.setattr(TeacherCache, "can_write", lambda self, key: False)
    evaluator.teacher_cache = TeacherCache(tmp_path)
    jobs = [search_job(config, student(evaluator, seed), {}) for seed in (0, 1)]
    for printed in (evaluator(jobs[0]), *evaluator.together(jobs)):
        capture, teacher = printed.notes
        assert capture.endswith("failed (operation not permitted)")
        assert teacher.startswith("the teacher was run on batches as they came")
        assert set(printed.profile) == {"build", "teacher", "data", "student", "evaluation"}


def test_the_number_of_students_at_a_time_is_not_measured_on_a_cpu(folder):
    assert opened(folder)[1].at_once() == Packing(1)


def test_the_teachers_notes_say_what_is_lost_and_what_runs_live(folder):
    def notes(*overrides):
        return opened(folder, *overrides)[1].facts().teacher.notes

    assert not any("logits are kept" in note or "every batch" in note for note in notes())
    assert not any("logits are kept" in note for note in notes("distillation.teacher_top_k=10"))
    (kept,) = [note for note in notes("distillation.teacher_top_k=3") if "3 of its 10 logits are kept" in note]
    assert float(kept.split("loses ")[1].split()[0]) > 0
    losses = "distillation.losses=[{type: hint, weight: 1}]"
    assert any("runs on every batch: hint" in note for note in notes(losses))


def test_truncated_teacher_outputs_still_train_a_student(folder):
    config, evaluator = opened(folder, "distillation.teacher_top_k=3", "training.epochs=1")
    printed = []
    evaluator.notify = printed.append
    assert result(config, evaluator).values["accuracy"] > 0
    assert printed
    assert printed[0].startswith("keeping the teacher's outputs on view 1")


@pytest.mark.slow
def test_a_latency_table_prices_in_the_search_and_is_the_same_for_every_worker(folder):
    overrides = ("objectives=[accuracy, latency_ms]", "costs={latency_ms: {table: auto}}", "training.epochs=1")
    config, evaluator = opened(folder, *overrides, "space=digits_resnet")
    assert "latency_ms" not in evaluator.price(student(evaluator))
    facts = evaluator.facts()
    priced = evaluator.price(student(evaluator))["latency_ms"]
    assert priced > 0
    worker = Workplan(dataclasses.replace(evaluator.context, calibrations=facts.calibrations))()
    assert worker.price(student(evaluator))["latency_ms"] == priced
    trial = worker(search_job(config, student(evaluator), {}))
    assert trial.values["latency_ms"] == priced
    assert trial.measurements == {}
    assert set(worker.measure(student(evaluator))) == {"latency_ms"}


def test_students_at_rungs_are_trained_at_once_and_as_each_would_be_alone(folder, tmp_path, monkeypatch):
    """Three at the first rung, one of them promoted: it goes on by itself, the others beside it."""
    study = load_study(folder, ["rungs=[{epochs: 1}, {epochs: 3}]", "training.precision=float32"])
    at_once: list[int] = []

    def counting(course, pupils):
        at_once.append(len(pupils))
        return train(course, pupils)

    monkeypatch.setattr("kdnas.workshop.evaluators.distil.train", counting)

    def evaluator(run):
        cache = Path(os.environ["KDNAS_CACHE"])
        return open_evaluator(EvaluatorContext(study.config, study.space, run, folder, cache, "cpu"))

    together, alone = evaluator(tmp_path / "together"), evaluator(tmp_path / "alone")
    students = [student(together, seed) for seed in (0, 1, 2)]
    first = [search_job(study.config, one, {}, 0) for one in students]
    promoted = search_job(study.config, students[0], {}, 1)
    scores = [answer.values["accuracy"] for answer in together.together(first)]
    assert at_once == [3]
    other = search_job(study.config, student(together, 3), {}, 0)
    scores += [answer.values["accuracy"] for answer in together.together([promoted, other])]
    assert at_once == [3, 1, 1]
    assert scores == [alone(job).values["accuracy"] for job in (*first, promoted, other)]
