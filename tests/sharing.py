"""Tiny studies on the real digits whose rungs share a supernet's weights, of both student families."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch

from kdnas.controller.events import Event
from kdnas.controller.preparation import Opened, prepare_study
from kdnas.record.run_folder import controller_lock
from kdnas.study.loading import LoadedStudy, load_study
from kdnas.workshop.evaluators import Evaluator, EvaluatorContext, Workplan, open_evaluator

RUNGS = "rungs=[{start: supernet}, {start: supernet, epochs: 1}, {epochs: 2}]"
SMALL = (
    "supernet={epochs: 2, shrinking: {policy: sandwich, subnets: 3, check_share: 0.2}, recalibration_images: 64}",
    "training.epochs=2",
    "training.data_fraction=0.3",
    "training.precision=float32",
    "final={seeds: 1, epochs: 3, data_fraction: 0.3, max_students: 2}",
)
MOBILENET = """\
family: mobilenet
choices:
  stem_width: [8, 16]
  stage1.depth: [1, 2]
  stage1.width: [8, 16]
  stage1.expand: [1, 2]
  stage1.kernel: [3, 5]
  stage1.squeeze_excite: [false, true]
  stage1.skip: [identity, none]
  head_width: [0]
"""


def write(parent: Path, family: str = "resnet") -> Path:
    """Write a study of `family` to `parent`/tiny and return that folder; the teacher is a resnet."""
    folder = tiny.write(parent)
    if family == "mobilenet":
        (folder / "space.yaml").write_text(MOBILENET)
    return folder


def load(folder: Path, *overrides: str) -> LoadedStudy:
    """Return the study with small rungs, and `overrides`."""
    return load_study(folder, [*SMALL, RUNGS, *overrides])


def prepared(study: LoadedStudy, run: Path, observe: Callable[[Event], None] = lambda event: None) -> Opened:
    """Return `study` ready to run in `run`, its supernet trained."""
    with controller_lock(run):
        return prepare_study(
            study,
            run,
            data_root=Path("nowhere"),
            cache=Path(os.environ["KDNAS_CACHE"]),
            device=torch.device("cpu"),
            observe=observe,
        )


def opened(study: LoadedStudy, run: Path, **context: Any) -> Evaluator:
    """Return the evaluator of `study`, nothing prepared."""
    cache = Path(os.environ["KDNAS_CACHE"])
    return open_evaluator(EvaluatorContext(study.config, study.space, run, run, cache, "cpu", **context))


def worker(opened: Opened) -> Evaluator:
    """Return the evaluator that a worker of the run opens."""
    plan = opened.workplan
    assert isinstance(plan, Workplan)
    return plan()
