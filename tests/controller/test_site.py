"""A controller that has neither data nor teacher: workers elsewhere open, check, measure, test and export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdnas.cli.main import main
from kdnas.controller.site import site_of
from kdnas.errors import DataError, TeacherError
from kdnas.executors.local import Local
from kdnas.record.products import lost_products
from kdnas.record.records import RunRecord
from kdnas.record.run_folder import LOCK_FILE
from kdnas.session import search_study
from kdnas.study.loading import load_study

_TEACHER = """\
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x):
        return torch.relu(x + self.inner(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.classifier = nn.Linear(8, 10)

    def forward(self, x):
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))


def build():
    return Net()
"""
_STUDY = """\
name: far
data: {type: npz, path: digits.npz, validation_fraction: 0.25}
teacher: {type: module, factory: my_teacher.py:build, weights: my_teacher.safetensors, mean: [100], std: [90]}
space: {derive: teacher}
objectives: [accuracy, macs]
constraints: ["macs<=70%"]
costs: {}
training: {epochs: 1, batch_size: 64, learning_rate: 0.003, optimizer: adamw}
start: inherited
sampler: random
executor: {type: local, workers: 1, threads: 1}
budget: {trials: 2, trial_time_limit_s: 60}
final: {seeds: 1, epochs: 1, max_students: 1, control: false}
export: {formats: [safetensors, student_json]}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose data and teacher lie in `workers` beside it, and its result where both are at hand."""
    folder = tmp_path_factory.mktemp("far")
    data = folder / "workers"
    data.mkdir()
    (data / "my_teacher.py").write_text(_TEACHER)
    (folder / "study.yaml").write_text(_STUDY)
    scope: dict[str, object] = {}
    exec(_TEACHER, scope)
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = (digits.images * 15).astype(np.uint8)[..., None], digits.target.astype(np.int64)
    arrays = {"train_images": images[:600], "train_labels": labels[:600], "test_images": images[600:700]}
    np.savez(data / "digits.npz", **arrays, test_labels=labels[600:700])
    torch.manual_seed(0)
    network = scope["build"]()  # type: ignore[operator]
    optimiser, inputs = torch.optim.AdamW(network.parameters(), 0.01), torch.tensor(images[:600]).permute(0, 3, 1, 2)
    for _ in range(12):
        for place in torch.randperm(600).split(64):
            logits = network((inputs[place].float() - 100) / 90)
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[place]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    save_file(network.state_dict(), data / "my_teacher.safetensors")
    return folder


def _searched(study: Path, run: Path, root: Path, *settings: str) -> tuple[RunRecord, list[str], list[Path]]:
    said: list[str] = []
    files: list[Path] = []
    loaded = load_study(study, list(settings))
    ended = search_study(
        loaded,
        run,
        data_root=root,
        observe=lambda event: said.append(getattr(event, "text", "")),
        on_end=lambda run, written, skipped: files.extend(written),
    )
    return ended, said, files


def _table(run: RunRecord) -> list[object]:
    return [
        (
            trial.number,
            trial.arch.arch_id,
            trial.state,
            trial.values,
            [(r.score, r.test_score, r.sha256) for r in trial.repeats],
        )
        for trial in run.trials
    ]


@pytest.fixture
def elsewhere(study, tmp_path, monkeypatch):
    """Search where the workers have data and cache of their own, and the controller an empty folder."""
    monkeypatch.setattr(Local, "elsewhere", True)
    monkeypatch.setenv("KDNAS_DATA", str(study / "workers"))
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "cache of a worker"))
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    settings = f"store=file://{tmp_path}/shared", "budget.trials=1"
    return lambda *further: _searched(study, tmp_path / "there", nothing, *settings, *further)


def test_a_controller_without_data_and_teacher_searches_reports_and_exports(elsewhere, monkeypatch):
    opened = []
    monkeypatch.setattr("kdnas.workshop.opening.load_data", lambda *given: opened.append(given))
    run, said, files = elsewhere()
    assert not opened  # in this process
    assert "measuring the teacher" in said
    assert [len(trial.repeats) for trial in run.trials] == [1]
    assert run.teacher.test_score is not None
    assert {path.name for path in files} >= {"report.html", "student.safetensors", "student.json"}
    assert all(path.is_file() for path in files)
    assert not lost_products(run, "export")


def test_what_is_done_afterwards_without_them_says_where_they_are(elsewhere, tmp_path, capsys, monkeypatch):
    run, _, _ = elsewhere()
    monkeypatch.setenv("KDNAS_DATA", str(tmp_path / "nothing"))
    for verb, *more in (
        ("export", "--out", str(tmp_path / "student")),
        ("train",),
        ("schedule",),
        ("measure", "--target", "cpu"),
    ):
        assert main([verb, str(run.folder), *more, "--trust-code"]) == 2, verb
        refused = capsys.readouterr().err
        assert "digits.npz" in refused
        assert "do this on a machine of theirs, or name where they are with --data-root" in refused
    assert not (tmp_path / "student").exists()


@pytest.mark.slow
def test_its_students_are_those_of_a_controller_that_has_both_and_it_goes_on(study, elsewhere, tmp_path):
    there, _, _ = elsewhere("budget.trials=3")
    here, _, _ = _searched(study, tmp_path / "here", study / "workers", "budget.trials=3")
    assert _table(there) == _table(here)
    assert there.lock.fingerprints == here.lock.fingerprints
    assert there.lock.teacher_answers == here.lock.teacher_answers
    assert (tmp_path / "there" / "family.json").read_bytes() == (tmp_path / "here" / "family.json").read_bytes()
    again, _, files = elsewhere("budget.trials=3")
    assert files == []
    assert _table(again) == _table(there)


def test_what_is_wrong_elsewhere_is_told_as_here_and_leaves_nothing(study, tmp_path, monkeypatch):
    monkeypatch.setattr(Local, "elsewhere", True)
    workers = tmp_path / "workers"
    workers.mkdir()
    monkeypatch.setenv("KDNAS_DATA", str(workers))
    (workers / "note.txt").write_text("no data here")
    with pytest.raises(DataError, match=r"digits.npz"):
        _searched(study, tmp_path / "run", tmp_path)
    assert not (tmp_path / "run").exists()
    (workers / "digits.npz").symlink_to(study / "workers" / "digits.npz")
    (workers / "my_teacher.py").write_text(_TEACHER)
    (workers / "my_teacher.safetensors").write_bytes(b"none")
    with pytest.raises(TeacherError, match=r"my_teacher.safetensors"):
        _searched(study, tmp_path / "run", workers)
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_study_whose_workers_are_here_has_no_site(study):
    with site_of(load_study(study).config, lambda event: None) as site:
        assert site is None
