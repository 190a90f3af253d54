"""What every data set keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdnas.core.data import Data, ImageData
from kdnas.datasets import DATASETS
from kdnas.testing._member import MemberConformance


class DatasetConformance(MemberConformance):
    """The suite of data sets."""

    registry = DATASETS

    def write(self, data_root: Path) -> Mapping[str, Any]:
        """Write what the member reads into `data_root`, and return the options to read it with."""
        return self.options

    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[Data, Data]:
        """The data opened twice: decoded, and as a search's workers get them."""
        (tmp_path / "data").mkdir()
        options = self.write(tmp_path / "data")
        first, again = (self.build(tmp_path / "data", tmp_path / "cache", **options) for _ in range(2))
        return first, again

    def test_its_samples_are_those_of_its_task(self, opened: tuple[Data, Data]) -> None:
        data, _ = opened
        task = data.task
        assert data.name
        assert len(data.class_names) == len(set(data.class_names))
        assert len(data.class_names) in (0, task.outputs)
        for split in (data.train, data.test):
            assert len(split)
            assert list(split.inputs) == [entry.name for entry in task.inputs]
            for entry in task.inputs:
                assert split.inputs[entry.name].shape == (len(split), *task.listed, *entry.shape)
            assert split.targets.dtype.kind in "iu"
            assert split.targets.size == len(split) * task.rows
            assert 0 <= split.targets.min() <= split.targets.max() < task.logits

    def test_statistics_of_images_are_those_of_the_training_split(self, opened: tuple[Data, Data]) -> None:
        data, _ = opened
        if isinstance(data, ImageData):
            images = np.asarray(data.train.inputs["pixels"], dtype=np.float64)
            assert data.train.inputs["pixels"].dtype == np.uint8
            what = "is that of the training images, channel by channel, on the 0-255 scale"
            mean, std = images.mean(axis=(0, 2, 3)), images.std(axis=(0, 2, 3))
            assert np.allclose(data.channel_mean, mean, atol=0.01), f"channel_mean {what}: {mean}"
            assert np.allclose(data.channel_std, std, atol=0.01), f"channel_std {what}: {std}"

    def test_it_is_the_same_each_time(self, opened: tuple[Data, Data]) -> None:
        first, again = opened
        assert first.fingerprint == again.fingerprint
        assert first.class_names == again.class_names
        for one, other in ((first.train, again.train), (first.test, again.test)):
            assert np.array_equal(one.targets, other.targets)
            for name in one.inputs:
                assert np.array_equal(one.inputs[name], other.inputs[name])
