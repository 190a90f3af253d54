"""What every teacher source keeps, on small random data. Shapes: B images, C channels, H and W, K classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from kdnas.core.data import ImageData, Samples
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
    """Of the data's images: C, and H which is W."""
    classes: ClassVar[int] = 10

    def write(self, data_root: Path) -> Mapping[str, Any]:
        """Write what the member loads into `data_root`, and return the options to load it with."""
        return self.options

    def context(self, data_root: Path) -> TeacherContext:
        """Return what a study hands over; its `train_student` is for the source `student` alone."""
        data = random_data(self.shape[0], self.shape[1], self.classes)

        def no_training(*arguments: Any) -> Any:
            raise AssertionError("trains nothing here")

        return TeacherContext(data, data_root, torch.device("cpu"), no_training)

    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[Teacher, Teacher]:
        """The teacher opened twice."""
        options = self.write(tmp_path)
        first, again = (self.build(self.context(tmp_path), **options) for _ in range(2))
        return first, again

    def images(self) -> torch.Tensor:
        """Return four raw images [4, C, H, W] in 0..255."""
        return torch.from_numpy(
            random_data(self.shape[0], self.shape[1], self.classes).train.inputs["pixels"][:4]
        ).float()

    def test_it_is_a_fixed_network_from_raw_images_to_logits(self, opened: tuple[Teacher, Teacher]) -> None:
        teacher, _ = opened
        assert isinstance(teacher, Teacher)
        assert teacher.name
        assert not any(module.training for module in teacher.module.modules())
        assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
        logits = teacher.module(self.images())
        assert logits.shape == (4, self.classes)
        assert torch.isfinite(logits).all()
        assert torch.equal(logits, teacher.module(self.images()))

    def test_its_stages_and_classifier_are_where_it_says(self, opened: tuple[Teacher, Teacher]) -> None:
        teacher, _ = opened
        shapes: list[int] = []
        for name in teacher.stages:
            teacher.module.get_submodule(name).register_forward_hook(lambda _, __, output: shapes.append(output.ndim))
        teacher.module(self.images())
        assert shapes == [4] * len(teacher.stages)
        if teacher.classifier is not None:
            assert isinstance(teacher.module.get_submodule(teacher.classifier), nn.Linear)

    def test_it_is_the_same_each_time(self, opened: tuple[Teacher, Teacher]) -> None:
        first, again = opened
        assert first.fingerprint == again.fingerprint
        assert torch.equal(first.module(self.images()), again.module(self.images()))
