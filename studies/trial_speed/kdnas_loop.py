"""kdnas's own way: what a search does with one student, through the function that it calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import setting
import torch
from torch import nn

from kdnas.core.data import ImageData
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.distil import Trained, distil
from kdnas.training.teacher_cache import TeacherCache


def train(
    student: nn.Module,
    teacher: Teacher,
    data: ImageData,
    indices: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    seed: int,
    cache: Path,
) -> Trained:
    """Train `student` for one pass over the training images `indices`, with the teacher's outputs kept in `cache`."""
    batches = Batches(data.train, indices, num_classes=data.task.num_classes, device=device)
    return distil(
        student,
        teacher,
        batches,
        None,
        setting.recipe(batch_size),
        data=data,
        seed=seed,
        view_seed=seed,
        device=device,
        teacher_cache=TeacherCache(cache),
    )


def rate(trained: Trained, images: int) -> float:
    """Return the images a second of a training of one pass, all of its steps counted."""
    return images / trained.train_seconds
