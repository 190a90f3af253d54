"""What the benchmarks share: random images, the networks and recipe of studies/trial_speed, and a training's speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdnas_loop
import numpy as np
import setting
import torch
from torch import nn

from kdnas.core.data import ImageData, Samples
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.loop import EpochRecord, distil

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A device, and random CIFAR-shaped images: speed does not depend on what they show. `quick` tries the program."""

    device: torch.device
    data: ImageData
    cache: Path
    quick: bool

    @classmethod
    def make(cls, device: torch.device, cache: Path, *, quick: bool) -> Bench:
        """Return the bench; the teacher's outputs are kept in `cache`."""
        count, rng = 96 if quick else 32_768, np.random.default_rng(0)
        images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        arrays = Samples({"pixels": images}, rng.integers(0, 10, count))
        names = tuple(map(str, range(10)))
        return cls(
            device, ImageData("random", names, arrays, arrays, "random", (127.5,) * 3, (73.9,) * 3), cache, quick
        )

    @property
    def epochs(self) -> int:
        """Of each training: what is reported is the median over those after the first."""
        return 2 if self.quick else 6

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """From large to small: what the goal is about comes first, should time run out."""
        return (32,) if self.quick else (8192, 4096, 2048, 1024, 512, 128)

    @property
    def indices(self) -> np.ndarray:
        """All images."""
        return np.arange(len(self.data.train))

    def student(self, seed: int = 1) -> nn.Module:
        """Return a new ResNet-20."""
        return setting.build(setting.resnet(8 if self.quick else 20), self.data, seed)

    def teacher(self) -> Teacher:
        """Return a ResNet-56 of random weights."""
        return setting.resnet56(self.data, self.device)

    def images(self) -> Batches:
        """Return the images on the device."""
        return Batches(self.data, self.indices, device=self.device)

    def train(self, batch_size: int, *, graphs: bool = True, teacher: str = "cached") -> Row:
        """Train one student and return its speed; `teacher` is cached, live or none."""
        begun = time.perf_counter()
        if teacher == "none":
            trained = distil(
                self.student(), None, self.images(), None, setting.recipe(batch_size, self.epochs),
                data=self.data, seed=0, device=self.device, graphs=graphs,
            )  # fmt: skip
        else:
            trained = kdnas_loop.train(
                self.student(), self.teacher(), self.data, self.indices,
                batch_size=batch_size, device=self.device, seed=0, epochs=self.epochs, graphs=graphs,
                cache=self.cache if teacher == "cached" else None,
            )  # fmt: skip
        return {
            "batch_size": batch_size,
            "graphs": graphs,
            "teacher": teacher,
            **speed(trained.history, len(self.data.train)),
            "whole_call_s": time.perf_counter() - begun,
            "graph_failure": trained.graph_failure,
        }

    def fill(self) -> None:
        """Have the teacher's outputs on every view in the cache, and this process warm."""
        self.train(32 if self.quick else 1024)


def speed(history: Sequence[EpochRecord], images: int, students: int = 1) -> Row:
    """Return images a second over the epochs after the first, which holds the capture; seconds are equal shares."""
    rates = [images / record.seconds for record in history[1:]]
    middle = statistics.median(rates)
    return {
        "images_per_s": middle,
        "spread": (max(rates) - min(rates)) / middle,
        "epochs_measured": len(rates),
        "first_epoch_s": history[0].seconds * students,
    }
