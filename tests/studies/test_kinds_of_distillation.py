"""studies/kinds_of_distillation: every kind is a sound study, and trains a student on a few small samples."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import kdnas
from kdnas.core.pairing import paired
from kdnas.datasets import DATASETS
from kdnas.errors import TeacherError
from kdnas.nn.normalise import Normalised
from kdnas.study.loading import LoadedStudy, load_study
from kdnas.training.loop import Trained, distil
from kdnas.training.recipe import Distillation
from kdnas.workshop.opening import Sources, Workshop

KINDS = {
    "labels": [],
    "teacher": [{"type": "kd", "of": "plain"}],
    "ensemble": [{"type": "kd", "of": "ensemble"}],
    "mutual": [{"type": "kd", "of": "peers"}],
    "average": [{"type": "kd", "of": "ema"}],
    "exits": [{"type": "exits", "of": "self"}],
    "contrastive": [{"type": "contrastive", "of": "plain"}],
}
BRIEF = {"epochs": 1, "batch_size": 32, "augmentation": {"flip": False}}


def small(repository: Path, name: str, folder: Path) -> LoadedStudy:
    """Return the study with brief trainings."""
    source = repository / "studies/kinds_of_distillation" / name
    study = yaml.safe_load((source / "study.yaml").read_text())
    study["training"] |= {**BRIEF, "precision": "float32"}
    for teacher in [*study.get("teachers", {}).values(), *([study["teacher"]] if "teacher" in study else [])]:
        teacher["training"] |= BRIEF
    study["space"] = str((source / study["space"]).resolve())
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return load_study(folder)


def trained(
    study: LoadedStudy, root: Path, cache: Path, losses: list[dict[str, str]] | None = None
) -> tuple[Workshop, Trained]:
    """Return a student of the study's space, trained; by `losses` in the place of the study's, as a comparison does."""
    sources = Sources.of_study(study.config, study.space)
    workshop = Workshop(sources, data_root=root, cache=cache, device=torch.device("cpu")).opened()
    arch = workshop.family.canonical(study.space.random(np.random.default_rng(0)))
    recipe = study.config.recipe
    if losses is not None:
        distillation = Distillation.model_validate({"task_weight": 1.0, "losses": losses})
        recipe = recipe.model_copy(update={"distillation": distillation})
    peers = workshop.peers(arch, recipe.distillation, "random", 0)
    network = workshop.begin(arch, "random", 0)
    found = distil(
        network, workshop.teachers, workshop.train, workshop.validation, recipe,
        data=workshop.data, seed=0, device=workshop.device, peers=peers,
    )  # fmt: skip
    return workshop, found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a few of the spoken digits, made small: noise whose mean tells digit and speaker."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "audio").mkdir()
    rng, count = np.random.default_rng(0), 360
    digit, speaker = np.arange(count) % 10, np.arange(count) // 10 % 6
    shade = (20 * digit[:, None, None] + 10 * speaker[:, None, None] + rng.normal(0, 8, (count, 8, 12))).clip(0, 255)
    test = rng.permutation(count) < count // 5
    arrays = {"x": shade.astype(np.uint8), "digit": digit.astype(np.uint8), "speaker": speaker.astype(np.uint8)}
    np.savez(folder / "audio" / "fsdd_logmel.npz", **arrays, test=test)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("kind", KINDS)
def test_one_student_learns_by_every_kind(repository, root, cache, tmp_path, kind):
    _, found = trained(small(repository, ".", tmp_path), root, cache, KINDS[kind])
    assert 0 <= found.score <= 1


@pytest.mark.parametrize("route", ["direct", "shrink", "grow", "assistants", "born_again"])
def test_finalists_may_take_every_route(repository, route):
    study = load_study(repository / "studies/kinds_of_distillation", [f"final.route={route}"])
    assert study.config.final_fidelity.route == route


def test_a_student_is_born_again(repository, root, cache, tmp_path):
    study = small(repository, "born_again", tmp_path)
    assert (study.config.final.route, study.config.final.seeds) == ("born_again", 3)
    _, found = trained(study, root, cache)
    assert 0 <= found.score <= 1


@pytest.mark.parametrize("name", ["sees_by_hearing", "hears_by_seeing"])
def test_a_teacher_of_the_other_kind_is_given_its_own_samples(repository, root, cache, tmp_path, name):
    workshop, found = trained(small(repository, name, tmp_path), root, cache)
    given = [teacher.given(workshop.data) for teacher in workshop.teachers.values()]
    assert sum(data is not workshop.data for data in given) == 1
    assert 0 <= found.score <= 1


def test_students_learn_of_each_other_without_a_teacher(repository, root, cache, tmp_path):
    workshop, found = trained(small(repository, "no_teacher", tmp_path), root, cache)
    assert workshop.teacher is None
    assert 0 <= found.score <= 1


def test_a_student_of_two_tasks_learns_of_two_specialists(repository, root, cache, tmp_path):
    workshop, found = trained(small(repository, "two_tasks", tmp_path), root, cache)
    assert set(found.by_task) == {"digit.accuracy", "speaker.accuracy"}
    assert found.score == pytest.approx(np.mean(list(found.by_task.values())))
    assert [teacher.given(workshop.data).task.outputs for teacher in workshop.teachers.values()] == [10, 6]
    assert workshop.worst_scores()["speaker.accuracy"] == pytest.approx(1 / 6, abs=0.02)


def test_a_speaker_without_labels_is_learnt_of_the_teacher_and_not_scored_on(repository, root, cache, tmp_path):
    prepare = repository / "studies/kinds_of_distillation/new_speaker/prepare.py"
    subprocess.run([sys.executable, prepare, root], check=True, timeout=60)
    workshop, found = trained(small(repository, "new_speaker", tmp_path), root, cache)
    targets, unlabelled = workshop.data.train.targets, 60 - len(workshop.data.test)
    assert (targets[workshop.validation_indices] >= 0).all()
    assert (targets[workshop.train_indices] == -1).sum() == unlabelled > 0
    assert any(f"{unlabelled} of the" in note and "no label" in note for note in workshop.data_notes)
    assert 0 <= found.score <= 1


def test_a_teacher_in_colour_is_given_the_very_photos_of_a_grey_student(repository, tmp_path):
    study = load_study(repository / "studies/kinds_of_distillation/grey_by_colour")
    for number, name in enumerate(("glass", "metal", "paper")):
        for part, count in (("train", 8), ("test", 2)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for place in range(count):
                noise = np.random.default_rng([number, place, count]).integers(0, 256, (96, 96, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{place}.png")
    stated = study.config.teachers["colour"].data
    ours, theirs = (
        DATASETS.build(each.type, tmp_path, tmp_path / "cache", **{**each.options, "path": "photos"})
        for each in (study.config.data, stated)
    )
    seen = paired(theirs, ours, stated.pair, (np.arange(len(ours.train)),), seed=0)
    grey, colour = (np.asarray(each.train.inputs["pixels"][:]).astype(float) for each in (ours, seen))
    assert (grey.shape[1:], colour.shape[1:]) == ((1, 48, 48), (3, 96, 96))
    weighed = np.tensordot(colour, [0.299, 0.587, 0.114], axes=(1, 0))
    small = weighed.reshape(len(weighed), 48, 2, 48, 2).mean(axis=(2, 4))
    alike = [[np.corrcoef(a.ravel(), b.ravel())[0, 1] for b in small] for a in grey[:, 0]]
    assert (np.argmax(alike, axis=1) == np.arange(len(grey))).all()


def test_parties_teach_of_samples_that_no_student_sees(repository, root, cache, tmp_path):
    folder = repository / "studies/kinds_of_distillation/parties"
    runpy.run_path(str(folder / "prepare.py"))["write"](root / "audio", public=80)
    (root / "noise.key").write_bytes(bytes(range(32)))
    study = yaml.safe_load((folder / "study.yaml").read_text())
    for teacher in study["teachers"].values():
        teacher |= {"count": 4, "training": {"epochs": 1, "batch_size": 16}}
    study["training"] |= {"epochs": 1, "precision": "float32"}
    study["space"] = str((folder / study["space"]).resolve())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    workshop, found = trained(load_study(tmp_path), root, cache)
    assert 0 <= found.score <= 1
    assert len(workshop.data.train) == 80
    teachers = workshop.teachers
    assert all("learnt from fsdd_private.npz, 208 samples" in teacher.notes for teacher in teachers.values())
    assert [any("epsilon" in note for note in teacher.notes) for teacher in teachers.values()] == [False, False, True]
    study["training"]["augmentation"] = {"crop_padding": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    with pytest.raises(TeacherError, match="further answer"):
        trained(load_study(tmp_path), root, cache)


def test_a_student_of_an_earlier_run_teaches_what_it_knew(repository, root, cache, tmp_path):
    folder = repository / "studies/kinds_of_distillation/continual"
    runpy.run_path(str(folder / "prepare.py"))["write"](root / "audio")
    brief = {"training.epochs": 1, "training.precision": "float32", "final.epochs": 1, "executor.workers": 1}
    before = kdnas.search(folder / "before", out=root / "runs/before", data_root=root, settings=brief)
    study = load_study(folder)
    workshop, found = trained(study, root, cache)
    teacher = workshop.teacher
    assert teacher.arch == before.pick().trial.arch
    images = torch.tensor(workshop.data.test.inputs["pixels"][:8]).float()
    torch.testing.assert_close(teacher.module(images), before.student()(images))
    begun = workshop.begin(teacher.arch, "inherited", 0).eval()
    seen = next(part for part in teacher.module.modules() if isinstance(part, Normalised))
    torch.testing.assert_close(begun((images - seen.mean) / seen.std), teacher.module(images))
    assert 0 <= found.score <= 1
