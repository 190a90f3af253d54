"""Companions compute what the training of a supernet will ask the teacher for, and change nothing that comes of it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
import sharing
import torch
from safetensors.torch import load_file

from kdnas.controller import preparation
from kdnas.controller.companions import companions
from kdnas.workshop.evaluators import EvaluatorContext, Workplan

VIEWS = ("supernet.views=2", "training.augmentation={crop_padding: 1}")


def filled(cache: Path) -> list[int]:
    """Return of how many samples each view has rows, the views in their order."""
    return [int((np.fromfile(path, np.uint32) > 0).sum()) for path in sorted(cache.rglob("view*.sums"))]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache without the teacher's outputs; the teacher is the one that other tests have trained."""
    known = Path(os.environ["KDNAS_CACHE"])
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("teachers", "datasets"):
        if (known / name).exists():
            (cache / name).symlink_to(known / name)
    monkeypatch.setenv("KDNAS_CACHE", str(cache))
    return cache


def test_they_fill_every_view_that_is_asked_for(tmp_path, own_cache):
    study = sharing.load(sharing.write(tmp_path), *VIEWS)
    evaluator = sharing.opened(study, tmp_path / "run")
    context = Workplan(evaluator.context).context
    samples = len(evaluator.workshop.share(study.config.training.data_fraction))
    with companions(context, count=2, threads=1):
        until = time.monotonic() + 60
        while filled(own_cache) != [samples] * 2 and time.monotonic() < until:
            time.sleep(0.05)
    assert filled(own_cache) == [samples] * 2


def test_they_stay_some_views_ahead_of_the_training(tmp_path, own_cache):
    study = sharing.load(sharing.write(tmp_path), VIEWS[1])
    evaluator = sharing.opened(study, tmp_path / "run")

    def views(count: int) -> int:
        until = time.monotonic() + 60
        while len(filled(own_cache)) < count and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.0)  # were there more, they would come now
        return len(filled(own_cache))

    with companions(Workplan(evaluator.context).context, count=1, threads=1):
        assert views(4) == 4
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / ".supernet_view").write_text("2\n")
        assert views(6) == 6


def test_a_supernet_is_the_same_with_them_and_without(tmp_path, own_cache):
    weights = []
    folder = sharing.write(tmp_path)
    for workers in (1, 2):
        study = sharing.load(folder, *VIEWS, f"executor.workers={workers}")
        sharing.prepared(study, tmp_path / f"run{workers}")
        weights.append(load_file(tmp_path / f"run{workers}" / "supernet" / "weights.safetensors"))
        assert not (tmp_path / f"run{workers}" / ".supernet_view").exists()
        for path in own_cache.rglob("view*"):
            path.unlink()
    one, two = weights
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_there_are_as_many_as_cores_are_idle_and_only_while_a_supernet_trains(tmp_path, monkeypatch):
    asked = []

    def seen(context: EvaluatorContext, *, count: int, threads: int) -> contextlib.AbstractContextManager[None]:
        asked.append((count, threads))
        return contextlib.nullcontext()

    monkeypatch.setattr(preparation, "companions", seen)
    monkeypatch.setattr(preparation, "usable_cores", lambda: 4)
    folder = sharing.write(tmp_path)
    executors = (
        "{type: local}",
        "{type: local, workers: 2}",
        "{type: local, workers: 64}",
        "{type: local, threads: 2}",
        "{type: local, workers: 1}",
    )
    for number, executor in enumerate(executors):
        study = sharing.load(folder, f"executor={executor}")
        for _ in range(2):  # the second time it is trained
            sharing.prepared(study, tmp_path / f"run{number}")
    assert asked == [(3, 1), (1, 1), (3, 1), (1, 2)]
