"""What teacher tests share: small random data sets, and the context a teacher source is opened in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdnas.teachers import TeacherContext
from kdnas.testing.teachers import random_data


@pytest.fixture
def open_context(tmp_path: Path) -> Callable[..., TeacherContext]:
    """Return a function that makes a context; its data root is `tmp_path`."""

    def make(
        *, channels: int = 3, size: int = 32, classes: int = 10, data_root: Path = tmp_path, train_student=None
    ) -> TeacherContext:
        data = random_data(channels, size, classes)
        return TeacherContext(data, data_root, torch.device("cpu"), train_student)

    return make


@pytest.fixture
def raw_images() -> Callable[[TeacherContext], torch.Tensor]:
    """Return a function that gives four raw images of a context's data as floats in 0..255."""
    return lambda context: torch.from_numpy(context.data.train.inputs["pixels"][:4]).float()
