"""What teacher tests share: small random data sets, and the context a teacher source is opened in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdnas.core.data import ImageData, Samples
from kdnas.teachers import TeacherContext


def _data(channels: int, size: int, classes: int) -> ImageData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * classes, channels, size, size), dtype=np.uint8)
    arrays = Samples({"pixels": images}, np.arange(2 * classes, dtype=np.int64) % classes)
    names = tuple(f"class{index}" for index in range(classes))
    statistics = tuple(float(index + 120) for index in range(channels)), tuple(float(60 + i) for i in range(channels))
    return ImageData("random", names, arrays, arrays, "0", *statistics)


@pytest.fixture
def open_context(tmp_path: Path) -> Callable[..., TeacherContext]:
    """Return a function that makes a context; its data root is `tmp_path`."""

    def make(
        *, channels: int = 3, size: int = 32, classes: int = 10, data_root: Path = tmp_path, train_student=None
    ) -> TeacherContext:
        data = _data(channels, size, classes)
        return TeacherContext(data, data_root, torch.device("cpu"), train_student)

    return make


@pytest.fixture
def raw_images() -> Callable[[TeacherContext], torch.Tensor]:
    """Return a function that gives four raw images of a context's data as floats in 0..255."""
    return lambda context: torch.from_numpy(context.data.train.inputs["pixels"][:4]).float()
