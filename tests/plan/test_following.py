"""Plans followed: by every route and for both families, interrupted and continued, and followed again."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import sharing
import torch
import yaml
from planned_training import basis_of, stop_at
from torch import nn
from trained_run import study_config

from kdnas.core.data import ImageData
from kdnas.core.fidelity import Fidelity
from kdnas.core.route import Route
from kdnas.core.seeds import derive_seed
from kdnas.errors import ConfigError, RunError, RunFolderError, TrialError
from kdnas.plan.making import PlanBasis, cut_from_run, make_measured_plan, make_plan, open_basis
from kdnas.plan.plan_file import SupernetStep, TrainingPlan, check_plan, load_plan
from kdnas.plan.training import FullTraining, Progress, StepResult, train_fully
from kdnas.plan.training_ground import open_training
from kdnas.record.records import FrontMember, TrialRecord
from kdnas.workshop.opening import load_data

NOWHERE = Path("nowhere")
EPOCHS = 5


@pytest.fixture(scope="module")
def digits(kdnas_cache: Path) -> ImageData:
    return load_data(study_config().data, NOWHERE, kdnas_cache)


@pytest.fixture(scope="module")
def bases(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PlanBasis]:
    return {
        name: basis_of(name, digits, tmp_path_factory.mktemp(name), epochs=EPOCHS) for name in ("resnet", "mobilenet")
    }


def train(basis: PlanBasis, route: Route, out: Path, *, plan: TrainingPlan | None = None, **options) -> FullTraining:
    plan = plan or make_plan(basis, route, "asked for")
    return train_fully(basis.file, out, plan=plan, data_root=NOWHERE, device="cpu", formats=["safetensors"], **options)


@pytest.fixture(scope="module")
def shrunk(
    bases: dict[str, PlanBasis], tmp_path_factory: pytest.TempPathFactory
) -> tuple[FullTraining, list[Progress]]:
    """An uninterrupted training by route shrink, and its news."""
    news: list[Progress] = []
    return train(bases["resnet"], "shrink", tmp_path_factory.mktemp("shrunk"), on_progress=news.append), news


def same_student(a: Path, b: Path) -> bool:
    ours, theirs = (safetensors.torch.load_file(folder / "student.safetensors") for folder in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_shrinking_leaves_a_student_and_the_stages_as_they_went(shrunk, bases):
    result, news = shrunk
    assert {path.name for path in result.folder.iterdir() if not path.name.startswith(".")} == {
        "training.lock.yaml", "result.json", "plan.yaml", "student.safetensors", "1-supernet", "2-student",
        "student.py", "preprocessing.json", "predict.py",
    }  # fmt: skip
    plan, document = load_plan(result.folder / "plan.yaml")
    check_plan(plan, document, bases["resnet"].file, bases["resnet"].family)
    step = plan.steps[0]
    assert isinstance(step, SupernetStep)
    recorded = step.recorded
    assert recorded is not None
    assert recorded.policy == "adaptive"
    assert recorded.budget_macs == step.budget(plan.budget.macs)
    assert 1.0 <= sum(finished.spent for finished in recorded.stages) < 1.2
    steps = [json.loads((result.folder / name / "step.json").read_text()) for name in ("1-supernet", "2-student")]
    assert result.train_seconds == pytest.approx(sum(step["train_seconds"] for step in steps))
    assert steps[1]["score"] == result.score
    assert not list(result.folder.rglob("checkpoint.safetensors"))
    assert {(item.step, item.steps, item.name) for item in news} == {(1, 2, "supernet"), (2, 2, "student")}
    done = [item.done for item in news]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1.0)
    assert [item.at for item in news if item.step == 2] == ["epoch 1/2", "epoch 2/2"]


def test_followed_again_the_student_is_the_same_bit_for_bit(shrunk, bases, tmp_path):
    result, _ = shrunk
    plan, _ = load_plan(result.folder / "plan.yaml")
    again = train(bases["resnet"], "shrink", tmp_path / "again", plan=plan)
    assert same_student(again.folder, result.folder)
    assert (again.score, again.test_score) == (result.score, result.test_score)
    assert load_plan(again.folder / "plan.yaml")[0] == plan


def test_interrupted_anywhere_and_continued_it_is_the_same(shrunk, bases, tmp_path, monkeypatch):
    result, news = shrunk
    out = tmp_path / "out"
    in_supernet = sum(item.step == 1 for item in news)
    for count in (2, in_supernet - 2, 1):  # twice in the supernet, then after the first epoch of fine-tuning
        with pytest.raises(KeyboardInterrupt):
            train(bases["resnet"], "shrink", out, on_progress=stop_at(count))
        assert not (out / "result.json").exists()
    assert (out / "1-supernet" / "step.json").exists()
    monkeypatch.setattr("kdnas.workshop.shrinking.train_supernet", None)  # it is finished
    later: list[Progress] = []
    resumed = train(bases["resnet"], "shrink", out, on_progress=later.append)
    assert [item.at for item in later] == ["epoch 2/2"]
    assert same_student(out, result.folder)
    ours, theirs = (load_plan(folder / "plan.yaml")[0] for folder in (out, result.folder))
    assert ours == theirs
    monkeypatch.setattr("kdnas.plan.training.distil", None)
    again = train(bases["resnet"], "shrink", out)
    assert again.already_done
    assert again.test_score == resumed.test_score


def test_stopped_between_the_steps(shrunk, bases, tmp_path, monkeypatch):
    """The supernet is finished; what kills it is the very next thing."""
    result, _ = shrunk

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kdnas.plan.training.distil", killed)
        with pytest.raises(KeyboardInterrupt):
            train(bases["resnet"], "shrink", tmp_path / "out")
    train(bases["resnet"], "shrink", tmp_path / "out")
    assert same_student(tmp_path / "out", result.folder)


def test_direct_is_the_plain_training(bases, tmp_path):
    basis = bases["resnet"]
    plain = train_fully(basis.file, tmp_path / "plain", data_root=NOWHERE, formats=["safetensors"], device="cpu")
    direct = train(basis, "direct", tmp_path / "direct")
    assert same_student(tmp_path / "plain", tmp_path / "direct")
    assert direct.score == plain.score
    assert (tmp_path / "direct" / "1-student" / "history.csv").exists()
    assert not (tmp_path / "plain" / "plan.yaml").exists()


def test_a_student_learns_from_its_assistant(bases, tmp_path, monkeypatch):
    from kdnas.plan import training

    taught: list[str] = []
    distil = training.distil

    def watching(network, teacher, *arguments, **options):
        taught.append(next(iter(teacher.values())).name)
        return distil(network, teacher, *arguments, **options)

    monkeypatch.setattr("kdnas.plan.training.distil", watching)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(bases["resnet"], "assistants", out, on_progress=stop_at(2))
    train(bases["resnet"], "assistants", out)
    assert taught[0].startswith("resnet")
    assert taught[-1] == "assistant1"
    whole = train(bases["resnet"], "assistants", tmp_path / "whole")
    assert same_student(out, whole.folder)


def test_a_generation_begins_at_other_weights_and_learns_from_the_one_before(bases, tmp_path, monkeypatch):
    from kdnas.plan import training

    seen: list[tuple[str, int]] = []
    distil = training.distil

    def watching(network, teacher, *arguments, seed, **options):
        seen.append((next(iter(teacher.values())).name, seed))
        return distil(network, teacher, *arguments, seed=seed, **options)

    monkeypatch.setattr("kdnas.plan.training.distil", watching)
    train(bases["resnet"], "born_again", tmp_path / "out")
    direct = train(bases["resnet"], "direct", tmp_path / "direct")
    names, seeds = zip(*seen, strict=True)
    assert names[0].startswith("resnet")
    assert names[1] == "generation1"
    assert seeds[0] == seeds[2] != seeds[1]
    assert direct.folder.exists()


def test_a_student_inherits_from_its_teacher(bases, tmp_path, monkeypatch):
    """As the run's finalists do: the plain training, and every step that begins with its network."""
    from kdnas.plan import training

    basis, begun = bases["resnet"], []
    distil = training.distil

    def watching(network, *arguments, **options):
        begun.append({name: value.clone() for name, value in network.state_dict().items()})
        return distil(network, *arguments, **options)

    monkeypatch.setattr("kdnas.plan.training.distil", watching)
    file = basis.file.model_copy(update={"start": "inherited"})
    basis = replace(basis, file=file)
    assert [step.init for step in make_plan(basis, "assistants", "so").steps] == ["inherited", "inherited"]
    assert [step.init for step in make_plan(basis, "shrink", "so").steps] == ["inherited", "supernet"]
    plain = train_fully(file, tmp_path / "plain", data_root=NOWHERE, formats=["safetensors"], device="cpu")
    planned = train(basis, "direct", tmp_path / "planned")
    assert same_student(plain.folder, planned.folder)
    cache = Path(os.environ["KDNAS_CACHE"])
    workshop = open_training(file, data_root=NOWHERE, cache=cache, device="cpu", notify=print)
    torch.manual_seed(derive_seed(file.seed, "full", file.arch_id))
    inherited = workshop.family.inherit(file.student).state_dict()
    random = workshop.family.build(file.student).state_dict()
    for weights in begun:
        assert all(torch.equal(weights[name], value) for name, value in inherited.items())
    assert not all(torch.equal(inherited[name], value) for name, value in random.items())
    with pytest.raises(RunFolderError, match="start: .*random.* -> .*inherited"):
        train_fully(basis.file, train(bases["resnet"], "direct", tmp_path / "random").folder, data_root=NOWHERE)


def test_an_assistant_may_be_of_another_family(bases, tmp_path):
    """Where the plan is edited by hand."""
    basis, other = bases["resnet"], bases["mobilenet"]
    plan = make_plan(basis, "assistants", "so")
    first, last = plan.steps
    macs = other.family.price(other.file.student).macs
    share = macs / (plan.budget.epochs * plan.budget.student_macs)
    assistant = first.model_copy(update={"arch": other.file.arch, "epochs": 1, "share": share})
    edited = plan.model_copy(update={"steps": (assistant, last.model_copy(update={"epochs": 1}))})
    result = train(basis, "assistants", tmp_path, plan=edited)
    weights = safetensors.torch.load_file(tmp_path / "1-assistant1" / "weights.safetensors")
    assert weights.keys() == other.family.build(other.file.student).state_dict().keys()
    assert same_student(result.folder, train(basis, "assistants", tmp_path, plan=edited).folder)


def test_shrinking_of_the_other_family(bases, tmp_path):
    result = train(bases["mobilenet"], "shrink", tmp_path / "out")
    again = train(bases["mobilenet"], "shrink", tmp_path / "again", plan=load_plan(tmp_path / "out" / "plan.yaml")[0])
    assert same_student(result.folder, again.folder)


@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_growing_ends_with_the_student_and_is_followed_to_the_letter(digits, tmp_path, family):
    basis = basis_of(family, digits, tmp_path / "run", epochs=10, grows=True)
    result = train(basis, "grow", tmp_path / "out")
    plan = load_plan(tmp_path / "out" / "plan.yaml")[0]
    (stage,) = plan.steps[0].recorded.stages
    assert (stage.stage.growth, stage.stage.subnets, stage.stage.sandwich) == (1.0, 1, False)
    weights = safetensors.torch.load_file(tmp_path / "out" / "1-supernet" / "weights.safetensors")
    assert weights.keys() == basis.family.build(basis.file.student).state_dict().keys()
    again = train(basis, "grow", tmp_path / "again", plan=plan)
    assert same_student(result.folder, again.folder)


def test_another_plan_in_the_folder_is_refused(shrunk, bases):
    with pytest.raises(RunFolderError, match="holds another training"):
        train(bases["resnet"], "direct", shrunk[0].folder)
    with pytest.raises(RunFolderError, match="holds another training"):
        train_fully(bases["resnet"].file, shrunk[0].folder, data_root=NOWHERE)
    recorded, _ = load_plan(shrunk[0].folder / "plan.yaml")
    with pytest.raises(RunFolderError, match="holds another training") as caught:
        train(bases["resnet"], "shrink", shrunk[0].folder, plan=recorded)
    assert [problem.where for problem in caught.value.problems][1:] == ["plan.steps.0.recorded"]


def test_a_training_of_an_earlier_version_is_known(shrunk, bases, tmp_path):
    """Its lock said schedule for plan and images for samples, and spoke of images alone; its results said accuracy."""
    folder = shutil.copytree(shrunk[0].folder, tmp_path / "earlier")
    lock = yaml.safe_load((folder / "training.lock.yaml").read_text())
    lock["schedule"] = lock.pop("plan")
    lock["schedule"]["budget"]["images"] = lock["schedule"]["budget"].pop("samples")
    lock |= {"format_version": 1, "teacher": lock.pop("teachers")["teacher"], **lock.pop("statistics")}
    lock["input_shape"] = lock.pop("task")["inputs"][0]["shape"]
    assert lock.pop("start") == "random"
    (folder / "training.lock.yaml").write_text(yaml.safe_dump(lock))
    step = (folder / "2-student/step.json").read_text()
    assert '"score"' in step
    (folder / "2-student/step.json").write_text(step.replace('"score"', '"accuracy"'))
    assert train(bases["resnet"], "shrink", folder).already_done
    (folder / "result.json").unlink()
    again = train(bases["resnet"], "shrink", folder)  # its steps are finished
    assert (again.score, again.test_score) == (shrunk[0].score, shrunk[0].test_score)


def test_a_budget_counted_for_other_samples_is_refused(bases, tmp_path):
    plan = make_plan(bases["resnet"], "direct", "so")
    budget = plan.budget.model_copy(update={"samples": 3})
    with pytest.raises(ConfigError, match="samples are trained on: write the plan anew"):
        train(bases["resnet"], "direct", tmp_path, plan=plan.model_copy(update={"budget": budget}))


@pytest.mark.parametrize("damage", ["weights.safetensors", "step.json"])
def test_a_damaged_step_is_refused(bases, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train(bases["resnet"], "assistants", tmp_path, on_progress=stop_at(2))
    (tmp_path / "1-assistant1" / damage).write_text("nothing")
    with pytest.raises(RunFolderError, match=r"1-assistant1 is damaged .* remove it to repeat"):
        train(bases["resnet"], "assistants", tmp_path)


def test_every_route_is_measured_once(bases, tmp_path, kdnas_cache, monkeypatch):
    basis = bases["resnet"].with_epochs(20)
    news: list[str] = []

    def measured(**options) -> TrainingPlan:
        return make_measured_plan(basis, 0.1, tmp_path, data_root=NOWHERE, cache=kdnas_cache, device="cpu", **options)

    def stop(route: Route, progress: Progress) -> None:
        news.append(route)
        if len(news) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(on_progress=stop)
    plan = measured()
    by_route = {item.route: item for item in plan.measured}
    assert set(by_route) == {"direct", "shrink", "grow", "assistants", "born_again"}
    assert "route grow: " in by_route["grow"].note
    assert all(item.epochs == 2 for item in plan.measured)
    scores = {route: item.score for route, item in by_route.items() if item.score is not None}
    assert {"direct", "shrink"} <= set(scores)
    assert plan.route == max(scores, key=lambda route: scores[route])
    assert plan.budget.epochs == 20
    assert f"{100 * scores[plan.route]:.2f} %" in plan.why
    monkeypatch.setattr("kdnas.plan.training.distil", None)
    monkeypatch.setattr("kdnas.workshop.shrinking.train_supernet", None)
    assert measured() == plan  # nothing is trained again


def test_a_route_that_fails_is_noted_and_all_of_them_are_an_error(bases, tmp_path, kdnas_cache, monkeypatch):
    basis, done = bases["resnet"].with_epochs(20), StepResult(nn.Identity(), 0.5, 1.0)

    def measured(sound: int) -> TrainingPlan:
        def follow(file, steps, *arguments, **options) -> StepResult:
            if len(steps) > sound:
                raise TrialError(f"the loss is\x1b[31m nan in step {len(steps)}")
            return done

        monkeypatch.setattr("kdnas.plan.making.follow", follow)
        return make_measured_plan(basis, 0.1, tmp_path, data_root=NOWHERE, cache=kdnas_cache, device="cpu")

    plan = measured(sound=1)
    assert plan.route == "direct"
    assert "failed: the loss is nan in step 2" in [item.note for item in plan.measured]
    with pytest.raises(RunError, match="no route could be measured, .* for this reason .*: failed: the loss is nan"):
        measured(sound=0)


@pytest.fixture(scope="module")
def sharing_basis(kdnas_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> PlanBasis:
    """A basis for a student of a run that has trained a supernet."""
    parent = tmp_path_factory.mktemp("sharing")
    opened = sharing.prepared(sharing.load(sharing.write(parent)), parent / "run")
    arch = opened.evaluator.arch(opened.space.random(np.random.default_rng(1)))
    trial = TrialRecord(0, arch, "complete", Fidelity(2, 0.3), values={"accuracy": 0.3, "macs": 1.0})
    return open_basis(opened.run, FrontMember(trial, trial.values, None), 2, data_root=NOWHERE, cache=kdnas_cache)


def test_shrinking_begins_from_the_runs_own_supernet(sharing_basis, tmp_path, monkeypatch):
    from kdnas.plan import training

    basis, begun = sharing_basis, []
    distil = training.distil

    def watching(network, *arguments, **options):
        begun.append({name: value.clone() for name, value in network.state_dict().items()})
        return distil(network, *arguments, **options)

    def shared(workshop):
        return cut_from_run(basis.run, basis.file.student, workshop)

    monkeypatch.setattr("kdnas.plan.training.distil", watching)
    plan = make_plan(basis, "shrink", "so")
    assert plan.supernet is not None
    assert plan.supernet.fingerprint == basis.run.supernet.fingerprint
    result = train(basis, "shrink", tmp_path, plan=plan, shared=shared)
    workshop = open_training(
        basis.file, data_root=NOWHERE, cache=Path(os.environ["KDNAS_CACHE"]), device="cpu", notify=print
    )
    cut = shared(workshop).state_dict()
    assert all(torch.equal(begun[0][name], value) for name, value in cut.items())
    assert result.epochs == 2
    assert basis.inputs.shared_weights
    (basis.run.folder / "supernet" / "weights.safetensors").unlink()
    with pytest.raises(RunFolderError, match="missing"):
        shared(workshop)
