"""Small trainings beside a teacher that counts what it is asked, for tests of its cached outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdnas.core.data import ImageData
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.loop import Trained, distil
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training
from kdnas.training.teacher_cache import TeacherCache

CPU = torch.device("cpu")
VIEWS = Augmentation(crop_padding=1, cutout=2)


class Counting(nn.Module):
    """A teacher that counts the images it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(48, 10)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.head(self.body(images / 255))


def counting_teacher() -> Teacher:
    return Teacher("counting", Counting().eval(), ("body.1",), "head", fingerprint="one")


def batches(data: ImageData, count: int = 300) -> Batches:
    return Batches(data, np.arange(0, 2 * count, 2), device=CPU)


class Student(nn.Module):
    """A small network with the student families' contract."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(images).mean(dim=(2, 3)))


def student() -> nn.Module:
    torch.manual_seed(0)
    return Student()


def train(
    data: ImageData,
    teacher: Teacher,
    cache: TeacherCache | None,
    *,
    losses: tuple[str, ...] = ("kd",),
    count: int = 300,
    augmentation: Augmentation = VIEWS,
    view_seed: int = 4,
    **training: Any,
) -> tuple[Trained, int]:
    """Train, and return what came of it and for how many images the teacher was run."""
    settings = {"epochs": 2, "batch_size": 64, "precision": "float32", "augmentation": augmentation, **training}
    terms = tuple(LossTerm(type=name, weight=0.5) for name in losses)
    recipe = Recipe(training=Training(**settings), distillation=Distillation(losses=terms))
    before = teacher.module.asked
    options: dict[str, Any] = {"data": data, "seed": 1, "device": CPU, "view_seed": view_seed, "teacher_cache": cache}
    result = distil(student(), teacher, batches(data, count), None, recipe, **options)
    asked = teacher.module.asked - before
    return result, asked - 2 if asked else asked  # two images tell the shapes


def train_at_once(start: Any, asked: Any, data: ImageData, folder: Path) -> None:
    """Train when all of `start` are ready, and put into `asked` for how many images the teacher was run."""
    torch.set_num_threads(1)
    start.wait()
    asked.put(train(data, counting_teacher(), TeacherCache(folder))[1])
