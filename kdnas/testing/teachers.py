"""What every teacher source keeps, on small random data.

Shapes: B samples, C channels, H and W height and width, M rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from kdnas.core.data import Data, ImageData, Samples
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.testing._member import MemberConformance


def random_data(channels: int = 3, size: int = 32, classes: int = 10) -> ImageData:
    """Return two images of noise of every class, the same for both splits."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * classes, channels, size, size), dtype=np.uint8)
    arrays = Samples({"pixels": images}, np.arange(2 * classes, dtype=np.int64) % classes)
    names = tuple(f"class{index}" for index in range(classes))
    statistics = tuple(float(index + 120) for index in range(channels)), tuple(float(60 + i) for i in range(channels))
    return ImageData("random", names, arrays, arrays, "0", *statistics)


class TeacherConformance(MemberConformance):
    """The suite of teacher sources."""

    registry = TEACHERS
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    """Of the images, unless `data` says otherwise: C, and H which is W."""
    classes: ClassVar[int] = 10

    def write(self, data_root: Path) -> Mapping[str, Any]:
        """Write what the member loads into `data_root`, and return the options to load it with."""
        return self.options

    def data(self) -> Data:
        """Return the data that it teaches on, four samples or more in its training split; here images of noise."""
        return random_data(self.shape[0], self.shape[1], self.classes)

    def context(self, data_root: Path) -> TeacherContext:
        """Return what a study hands over; its `train_student` is for the source `student` alone."""

        def no_training(*arguments: Any, **settings: Any) -> Any:
            raise AssertionError("trains nothing here")

        return TeacherContext(self.data(), data_root, torch.device("cpu"), no_training)

    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[Teacher, Teacher]:
        """The teacher opened twice."""
        options = self.write(tmp_path)
        first, again = (self.build(self.context(tmp_path), **options) for _ in range(2))
        return first, again

    def answers(self, teacher: Teacher) -> torch.Tensor:
        """Return the teacher's logits of four samples as they are stored, such as images in 0..255."""
        data = self.data()
        stored = [(torch.from_numpy(data.train.inputs[entry.name][:4]), entry.kind) for entry in data.task.inputs]
        answered = teacher.module(*(x.float() if kind in ("pixels", "floats") else x.long() for x, kind in stored))
        assert isinstance(answered, torch.Tensor)
        return answered

    def test_it_is_a_fixed_network_from_raw_samples_to_logits(self, opened: tuple[Teacher, Teacher]) -> None:
        teacher, _ = opened
        assert isinstance(teacher, Teacher)
        assert teacher.name
        assert not any(module.training for module in teacher.module.modules())
        assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
        logits, task = self.answers(teacher), self.data().task
        assert logits.shape == ((4, task.rows, task.outputs) if task.rows > 1 else (4, task.logits))
        assert torch.isfinite(logits).all()
        assert torch.equal(logits, self.answers(teacher))

    def test_its_stages_and_classifier_are_where_it_says(self, opened: tuple[Teacher, Teacher]) -> None:
        teacher, _ = opened
        shapes: list[int] = []
        for name in teacher.stages:
            teacher.module.get_submodule(name).register_forward_hook(lambda _, __, output: shapes.append(output.ndim))
        self.answers(teacher)
        assert len(shapes) == len(teacher.stages)
        assert set(shapes) <= {2, 3, 4}, "vectors [B, C], tokens [B, N, C], or maps [B, C, H, W]"
        if teacher.classifier is not None:
            assert isinstance(teacher.module.get_submodule(teacher.classifier), nn.Linear)

    def test_it_is_the_same_each_time(self, opened: tuple[Teacher, Teacher]) -> None:
        first, again = opened
        assert first.fingerprint == again.fingerprint
        assert torch.equal(self.answers(first), self.answers(again))
