"""Schedules followed: by every route and for both families, interrupted and continued, and followed again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import sharing
import torch
from scheduled_training import plan_of, stop_at
from torch import nn
from trained_run import study_config

from kdnas.core.data import ImageData
from kdnas.core.fidelity import Fidelity
from kdnas.core.route import Route
from kdnas.errors import ConfigError, RunError, RunFolderError, TrialError
from kdnas.plan.full_training import FullTraining, train_fully
from kdnas.plan.schedule_checks import check_schedule
from kdnas.plan.schedule_measuring import measured_schedule
from kdnas.plan.schedules import SupernetStep, TrainingSchedule, load_schedule
from kdnas.plan.scheduling import Plan, cut_from_run, open_plan, schedule_by
from kdnas.plan.training_ground import open_ground
from kdnas.plan.training_steps import Progress, StepResult
from kdnas.record.records import FrontMember, TrialRecord
from kdnas.workshop.opening import open_data

NOWHERE = Path("nowhere")
EPOCHS = 5


@pytest.fixture(scope="module")
def digits(kdnas_cache: Path) -> ImageData:
    return open_data(study_config().data, NOWHERE, kdnas_cache)


@pytest.fixture(scope="module")
def plans(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    return {
        name: plan_of(name, digits, tmp_path_factory.mktemp(name), epochs=EPOCHS) for name in ("resnet", "mobilenet")
    }


def train(plan: Plan, route: Route, out: Path, *, schedule: TrainingSchedule | None = None, **options) -> FullTraining:
    schedule = schedule or schedule_by(plan, route, "asked for")
    return train_fully(
        plan.file, out, schedule=schedule, data_root=NOWHERE, device="cpu", formats=["safetensors"], **options
    )


@pytest.fixture(scope="module")
def shrunk(plans: dict[str, Plan], tmp_path_factory: pytest.TempPathFactory) -> tuple[FullTraining, list[Progress]]:
    """An uninterrupted training by route shrink, and its news."""
    news: list[Progress] = []
    return train(plans["resnet"], "shrink", tmp_path_factory.mktemp("shrunk"), on_progress=news.append), news


def same_student(a: Path, b: Path) -> bool:
    ours, theirs = (safetensors.torch.load_file(folder / "student.safetensors") for folder in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_shrinking_leaves_a_student_and_the_stages_as_they_went(shrunk, plans):
    result, news = shrunk
    assert {path.name for path in result.folder.iterdir() if not path.name.startswith(".")} == {
        "training.lock.yaml", "result.json", "schedule.yaml", "student.safetensors", "1-supernet", "2-student"
    }  # fmt: skip
    schedule, document = load_schedule(result.folder / "schedule.yaml")
    check_schedule(schedule, document, plans["resnet"].file)
    step = schedule.steps[0]
    assert isinstance(step, SupernetStep)
    recorded = step.schedule
    assert recorded is not None
    assert recorded.policy == "adaptive"
    assert recorded.budget_macs == step.budget(schedule.budget.macs)
    assert 1.0 <= sum(finished.spent for finished in recorded.stages) < 1.2
    steps = [json.loads((result.folder / name / "step.json").read_text()) for name in ("1-supernet", "2-student")]
    assert result.train_seconds == pytest.approx(sum(step["train_seconds"] for step in steps))
    assert steps[1]["accuracy"] == result.score
    assert not list(result.folder.rglob("checkpoint.safetensors"))
    assert {(item.step, item.steps, item.name) for item in news} == {(1, 2, "supernet"), (2, 2, "student")}
    done = [item.done for item in news]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1.0)
    assert [item.at for item in news if item.step == 2] == ["epoch 1/2", "epoch 2/2"]


def test_followed_again_the_student_is_the_same_bit_for_bit(shrunk, plans, tmp_path):
    result, _ = shrunk
    schedule, _ = load_schedule(result.folder / "schedule.yaml")
    again = train(plans["resnet"], "shrink", tmp_path / "again", schedule=schedule)
    assert same_student(again.folder, result.folder)
    assert (again.score, again.test_score) == (result.score, result.test_score)
    assert load_schedule(again.folder / "schedule.yaml")[0] == schedule


def test_interrupted_anywhere_and_continued_it_is_the_same(shrunk, plans, tmp_path, monkeypatch):
    result, news = shrunk
    out = tmp_path / "out"
    in_supernet = sum(item.step == 1 for item in news)
    for count in (2, in_supernet - 2, 1):  # twice in the supernet, then after the first epoch of fine-tuning
        with pytest.raises(KeyboardInterrupt):
            train(plans["resnet"], "shrink", out, on_progress=stop_at(count))
        assert not (out / "result.json").exists()
    assert (out / "1-supernet" / "step.json").exists()
    monkeypatch.setattr("kdnas.plan.training_steps.train_supernet", None)  # it is finished
    later: list[Progress] = []
    resumed = train(plans["resnet"], "shrink", out, on_progress=later.append)
    assert [item.at for item in later] == ["epoch 2/2"]
    assert same_student(out, result.folder)
    ours, theirs = (load_schedule(folder / "schedule.yaml")[0] for folder in (out, result.folder))
    assert ours == theirs
    monkeypatch.setattr("kdnas.plan.training_steps.distil", None)
    again = train(plans["resnet"], "shrink", out)
    assert again.already_done
    assert again.test_score == resumed.test_score


def test_stopped_between_the_steps(shrunk, plans, tmp_path, monkeypatch):
    """The supernet is finished; what kills it is the very next thing."""
    result, _ = shrunk

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kdnas.plan.training_steps.distil", killed)
        with pytest.raises(KeyboardInterrupt):
            train(plans["resnet"], "shrink", tmp_path / "out")
    train(plans["resnet"], "shrink", tmp_path / "out")
    assert same_student(tmp_path / "out", result.folder)


def test_direct_is_the_plain_training(plans, tmp_path):
    plan = plans["resnet"]
    plain = train_fully(plan.file, tmp_path / "plain", data_root=NOWHERE, formats=["safetensors"], device="cpu")
    direct = train(plan, "direct", tmp_path / "direct")
    assert same_student(tmp_path / "plain", tmp_path / "direct")
    assert direct.score == plain.score
    assert (tmp_path / "direct" / "1-student" / "history.csv").exists()
    assert not (tmp_path / "plain" / "schedule.yaml").exists()


def test_a_student_learns_from_its_assistant(plans, tmp_path, monkeypatch):
    from kdnas.plan import training_steps

    taught: list[str] = []
    distil = training_steps.distil

    def watching(network, teacher, *arguments, **options):
        taught.append(teacher.name)
        return distil(network, teacher, *arguments, **options)

    monkeypatch.setattr("kdnas.plan.training_steps.distil", watching)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(plans["resnet"], "assistants", out, on_progress=stop_at(2))
    train(plans["resnet"], "assistants", out)
    assert taught[0].startswith("resnet")
    assert taught[-1] == "assistant1"
    whole = train(plans["resnet"], "assistants", tmp_path / "whole")
    assert same_student(out, whole.folder)


def test_shrinking_of_the_other_family(plans, tmp_path):
    result = train(plans["mobilenet"], "shrink", tmp_path / "out")
    again = train(
        plans["mobilenet"], "shrink", tmp_path / "again", schedule=load_schedule(tmp_path / "out" / "schedule.yaml")[0]
    )
    assert same_student(result.folder, again.folder)


def test_another_schedule_in_the_folder_is_refused(shrunk, plans):
    with pytest.raises(RunFolderError, match="holds another training"):
        train(plans["resnet"], "direct", shrunk[0].folder)
    with pytest.raises(RunFolderError, match="holds another training"):
        train_fully(plans["resnet"].file, shrunk[0].folder, data_root=NOWHERE)
    recorded, _ = load_schedule(shrunk[0].folder / "schedule.yaml")
    with pytest.raises(RunFolderError, match="holds another training") as caught:
        train(plans["resnet"], "shrink", shrunk[0].folder, schedule=recorded)
    assert [problem.where for problem in caught.value.problems][1:] == ["schedule.steps.0.recorded"]


def test_a_budget_counted_for_other_images_is_refused(plans, tmp_path):
    schedule = schedule_by(plans["resnet"], "direct", "so")
    budget = schedule.budget.model_copy(update={"images": 3})
    with pytest.raises(ConfigError, match="images are trained on: write the schedule anew"):
        train(plans["resnet"], "direct", tmp_path, schedule=schedule.model_copy(update={"budget": budget}))


@pytest.mark.parametrize("damage", ["weights.safetensors", "step.json"])
def test_a_damaged_step_is_refused(plans, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train(plans["resnet"], "assistants", tmp_path, on_progress=stop_at(2))
    (tmp_path / "1-assistant1" / damage).write_text("nothing")
    with pytest.raises(RunFolderError, match=r"1-assistant1 is damaged .* remove it to repeat"):
        train(plans["resnet"], "assistants", tmp_path)


def test_every_route_is_measured_once(plans, tmp_path, kdnas_cache, monkeypatch):
    plan = plans["resnet"].with_epochs(20)
    news: list[str] = []

    def measured(**options) -> TrainingSchedule:
        return measured_schedule(plan, 0.1, tmp_path, data_root=NOWHERE, cache=kdnas_cache, device="cpu", **options)

    def stop(route: Route, progress: Progress) -> None:
        news.append(route)
        if len(news) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(on_progress=stop)
    schedule = measured()
    by_route = {item.route: item for item in schedule.measured}
    assert set(by_route) == {"direct", "shrink", "assistants"}
    assert all(item.epochs == 2 for item in schedule.measured)
    scores = {route: item.accuracy for route, item in by_route.items() if item.accuracy is not None}
    assert {"direct", "shrink"} <= set(scores)
    assert schedule.route == max(scores, key=lambda route: scores[route])
    assert schedule.budget.epochs == 20
    assert f"{100 * scores[schedule.route]:.2f} %" in schedule.why
    monkeypatch.setattr("kdnas.plan.training_steps.distil", None)
    monkeypatch.setattr("kdnas.plan.training_steps.train_supernet", None)
    assert measured() == schedule  # nothing is trained again


def test_a_route_that_fails_is_noted_and_all_of_them_are_an_error(plans, tmp_path, kdnas_cache, monkeypatch):
    plan, done = plans["resnet"].with_epochs(20), StepResult(nn.Identity(), 0.5, 1.0)

    def measured(sound: int) -> TrainingSchedule:
        def follow(file, steps, *arguments, **options) -> StepResult:
            if len(steps) > sound:
                raise TrialError(f"the loss is\x1b[31m nan in step {len(steps)}")
            return done

        monkeypatch.setattr("kdnas.plan.schedule_measuring.follow", follow)
        return measured_schedule(plan, 0.1, tmp_path, data_root=NOWHERE, cache=kdnas_cache, device="cpu")

    schedule = measured(sound=1)
    assert schedule.route == "direct"
    assert "failed: the loss is nan in step 2" in [item.note for item in schedule.measured]
    with pytest.raises(RunError, match="no route could be measured, .* for this reason .*: failed: the loss is nan"):
        measured(sound=0)


@pytest.fixture(scope="module")
def sharing_plan(kdnas_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan for a student of a run that has trained a supernet."""
    parent = tmp_path_factory.mktemp("sharing")
    opened = sharing.prepared(sharing.load(sharing.write(parent)), parent / "run")
    arch = opened.evaluator.arch(opened.space.random(np.random.default_rng(1)))
    trial = TrialRecord(0, arch, "complete", Fidelity(2, 0.3), values={"accuracy": 0.3, "macs": 1.0})
    return open_plan(opened.run, FrontMember(trial, trial.values, None), 2, data_root=NOWHERE, cache=kdnas_cache)


def test_shrinking_begins_from_the_runs_own_supernet(sharing_plan, tmp_path, monkeypatch):
    from kdnas.plan import training_steps

    plan, begun = sharing_plan, []
    distil = training_steps.distil

    def watching(network, *arguments, **options):
        begun.append({name: value.clone() for name, value in network.state_dict().items()})
        return distil(network, *arguments, **options)

    def shared(ground):
        return cut_from_run(plan.run, plan.file.student, ground)

    monkeypatch.setattr("kdnas.plan.training_steps.distil", watching)
    schedule = schedule_by(plan, "shrink", "so")
    assert schedule.supernet is not None
    assert schedule.supernet.fingerprint == plan.run.supernet.fingerprint
    result = train(plan, "shrink", tmp_path, schedule=schedule, shared=shared)
    ground = open_ground(plan.file, data_root=NOWHERE, cache=Path(os.environ["KDNAS_CACHE"]), device="cpu", say=print)
    cut = shared(ground).state_dict()
    assert all(torch.equal(begun[0][name], value) for name, value in cut.items())
    assert result.epochs == 2
    assert plan.facts.shared_weights
    (plan.run.folder / "supernet" / "weights.safetensors").unlink()
    with pytest.raises(RunFolderError, match="missing"):
        shared(ground)
