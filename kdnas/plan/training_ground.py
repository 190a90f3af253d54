"""What a full training stands on: data, split, teacher and device, opened and checked against its train.yaml."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdnas.core.answers import what_differs
from kdnas.core.data import ImageData
from kdnas.errors import DataError, Problem, TeacherError
from kdnas.nn.normalise import Normalised
from kdnas.nn.taps import stage_names
from kdnas.plan.train_file import TrainFile
from kdnas.plan.training_folder import brief
from kdnas.students import family_for
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import accuracy
from kdnas.training.numerics import in_bfloat16
from kdnas.workshop.loss_check import check_losses
from kdnas.workshop.opening import open_teacher, resolve_device, split, training_indices
from kdnas.workshop.run_data import open_run_data
from kdnas.workshop.teacher_check import report_teacher


@dataclass(frozen=True)
class Ground:
    """What every step of a training uses. `train` and `validation` are parts of the training images."""

    data: ImageData
    teacher: Teacher
    train: Batches
    validation: Batches
    device: torch.device

    def on_pixels(self, network: nn.Module) -> nn.Module:
        """Return `network`, which takes normalised images, behind the normalisation, on the device."""
        return Normalised(network, self.data.channel_mean, self.data.channel_std).to(self.device)

    def as_teacher(self, name: str, network: nn.Module) -> Teacher:
        """Return `network`, a trained student, as the fixed teacher of others."""
        module = self.on_pixels(network).eval().requires_grad_(False)
        stages, classifier = stage_names(network)
        content = hashlib.sha256()
        for key, value in network.state_dict().items():
            content.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        inside = tuple(f"network.{stage}" for stage in stages)
        return Teacher(name, module, inside, classifier and f"network.{classifier}", content.hexdigest()[:16])

    def test_accuracy(self, network: nn.Module) -> float:
        """Return the accuracy in [0, 1] of `network` on the test split."""
        test, classes = self.data.test, self.data.task.outputs
        return accuracy(
            self.on_pixels(network), Batches(test, np.arange(len(test)), num_classes=classes, device=self.device)
        )


def open_ground(
    file: TrainFile, *, data_root: Path, cache: Path, device: str | None, say: Callable[[str], None]
) -> Ground:
    """Return what the training of `file` stands on; `device` overrides the file's.

    Raises DataError or TeacherError when data or teacher are not those of the file, ConfigError for a device that is
    not there.
    """
    hardware = resolve_device(device or file.device)
    data = open_run_data(file.data, data_root, cache, file.data_fingerprint, say=say)
    check_data(file, data)
    train_indices, validation_indices = split(data, file.data, file.seed)
    teacher = open_teacher(
        file.teacher,
        data,
        train_indices,
        data_root=data_root,
        cache=cache,
        device=hardware,
        seed=file.seed,
        numerics=file.training,
        say=say,
    )
    check_teacher(file, teacher)
    if not file.teacher_fingerprint:  # that of a study has been looked at when the study was opened
        bfloat16 = in_bfloat16(file.training, hardware)
        report_teacher(teacher, data, validation_indices, device=hardware, bfloat16=bfloat16, say=say)
        with torch.random.fork_rng(devices=[]):
            student = family_for(file.arch.family, data.task).build(file.student)
        check_losses(file.recipe, teacher, {"the student": student}, data, device=hardware)
    used = training_indices(data, train_indices, file.training.data_fraction, file.seed)
    classes = data.task.outputs
    train = Batches(data.train, used, num_classes=classes, device=hardware)
    validation = Batches(data.train, validation_indices, num_classes=classes, device=hardware)
    return Ground(data, teacher, train, validation, hardware)


def check_data(file: TrainFile, data: ImageData) -> None:
    """Raise DataError naming everything in which `data` is not what `file` was written for."""
    expected: list[tuple[str, Any, Any]] = [
        ("data_fingerprint", file.data_fingerprint, data.fingerprint),
        ("input_shape", tuple(file.input_shape), tuple(data.task.image_shape)),
        ("class_names", tuple(file.class_names), tuple(data.class_names)),
        ("channel_mean", tuple(file.channel_mean), tuple(float(value) for value in data.channel_mean)),
        ("channel_std", tuple(file.channel_std), tuple(float(value) for value in data.channel_std)),
    ]
    problems = [
        Problem(
            name, f"the data {data.name} is not what this training was written for: {brief(now)} instead", brief(was)
        )
        for name, was, now in expected
        if was != now
    ]
    if problems:
        raise DataError(problems)


def check_teacher(file: TrainFile, teacher: Teacher) -> None:
    """Raise TeacherError when `teacher` is another one than `file` names by its hash, or answers otherwise."""
    if file.teacher_fingerprint and teacher.fingerprint != file.teacher_fingerprint:
        raise TeacherError(
            Problem(
                "teacher_fingerprint",
                f"the teacher {teacher.name} is not the one of this training: {teacher.fingerprint} instead",
                file.teacher_fingerprint,
            )
        )
    if what := what_differs(file.teacher_answers, teacher.answers):
        raise TeacherError(
            Problem(
                "teacher_answers", f"the teacher {teacher.name} {what}", "the teacher as it was, or leave this key out"
            )
        )
