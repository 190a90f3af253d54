"""Small trainings on the real digits: networks, batches, a teacher and recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdnas.core.data import ImageData
from kdnas.nn.normalise import Normalised
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training

CPU = torch.device("cpu")
FLOAT32 = Training(precision="float32")
KD = LossTerm(type="kd", weight=0.9)


class Net(nn.Module):
    """Convolutions with the student families' contract."""

    def __init__(self, *widths: int, dropout: float = 0.0):
        super().__init__()
        channels, stages = 1, []
        for width in widths:
            layers = nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            stages.append(nn.Sequential(*layers))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = stage(images)
        return self.classifier(self.dropout(images.mean(dim=(2, 3))))


def net(*widths: int, seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(*widths, **options)


def batches(data: ImageData, start: int, stop: int, device: torch.device = CPU) -> Batches:
    return Batches(data, np.arange(start, stop), device=device)


def teacher(data: ImageData) -> Teacher:
    module = Normalised(net(12, 24, 32, seed=7), data.channel_mean, data.channel_std).eval()
    stages = tuple(f"network.stages.{index}" for index in range(3))
    return Teacher("untrained", module, stages, "network.classifier", fingerprint="untrained")


def recipe(*losses: LossTerm, **training: Any) -> Recipe:
    settings = {"epochs": 2, "batch_size": 64, "precision": "float32", **training}
    return Recipe(training=Training(**settings), distillation=Distillation(task_weight=0.5, losses=losses))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(state(first).items(), state(second).items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


class Tape:
    """Stands in for a CUDA device's recorder: a capture does nothing, a replay does the work on the captured inputs."""

    def __init__(self, fail: str | None = None):
        self.fail = fail
        self.ran = self.captures = self.replays = 0

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        self.ran += 1
        return work()

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        if self.fail is not None:
            raise RuntimeError(self.fail)
        result = torch.full((), float("nan"))

        def replay() -> Tensor:
            self.replays += 1
            return result.copy_(work())

        return replay
