"""Workshops over data that a test has at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdnas.core.data import ImageData
from kdnas.study.config import DataConfig, TeacherConfig
from kdnas.training.recipe import Training
from kdnas.workshop.opening import TEACHER, MadeOn, Sources, Workshop


def workshop_of(
    data: ImageData | DataConfig,
    *,
    train: np.ndarray | None = None,
    teacher: dict[str, Any] | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache: Path = Path("nowhere"),
    data_root: Path = Path("data"),
    made_on: MadeOn | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Workshop:
    """Return a workshop on the CPU; `train` are the places of its training split where it is not drawn."""
    config = (
        data if isinstance(data, DataConfig) else DataConfig(type="digits", validation_fraction=validation_fraction)
    )
    teachers = {} if teacher is None else {TEACHER: TeacherConfig(**teacher)}
    sources = Sources(config, teachers, "resnet", seed, Training())
    opened = Workshop(
        sources,
        data_root=data_root,
        cache=cache,
        device=torch.device("cpu"),
        made_on=made_on or MadeOn(),
        notify=notify,
    )
    if isinstance(data, ImageData):
        vars(opened)["data"] = data
    if train is not None:
        vars(opened)["_split"] = (train, np.setdiff1d(np.arange(len(data.train)), train))
    return opened


def split_of(data: ImageData, validation_fraction: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the training and of the validation split."""
    opened = workshop_of(data, validation_fraction=validation_fraction, seed=seed)
    return opened.train_indices, opened.validation_indices
