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
from kdnas.training.loop import Trained, distil
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
    cache: Path | None,
    epochs: int = 1,
    graphs: bool = True,
) -> Trained:
    """Train `student` for `epochs` passes over the training images `indices`.

    The teacher's outputs are kept in `cache`; None: the teacher is run on every batch.
    """
    batches = Batches(data, indices, device=device)
    return distil(
        student,
        teacher,
        batches,
        None,
        setting.recipe(batch_size, epochs),
        data=data,
        seed=seed,
        view_seed=seed,
        device=device,
        teacher_cache=None if cache is None else TeacherCache(cache),
        graphs=graphs,
    )


def rate(trained: Trained, images: int) -> float:
    """Return the images a second of a training on so many images, all of its steps counted."""
    return images * len(trained.history) / trained.train_seconds
