"""What a full training works with, opened and checked against its train.yaml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kdnas.core.answers import what_differs
from kdnas.core.data import Data
from kdnas.errors import DataError, Problem, TeacherError
from kdnas.plan.train_file import TrainFile
from kdnas.plan.training_folder import brief
from kdnas.teachers import Teacher
from kdnas.workshop.loss_check import check_losses
from kdnas.workshop.opening import MadeOn, Sources, Workshop, resolve_device
from kdnas.workshop.teacher_check import report_teacher


def training_workshop(
    file: TrainFile,
    *,
    data_root: Path,
    cache: Path,
    device: str | None = None,
    run: Workshop | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Workshop:
    """Return what the training of `file` works with, nothing opened.

    What the `run` that found its student has is taken: its data, and the teacher that was trained for it. `device`
    overrides the file's. Raises ConfigError for a device that is not there.
    """
    workshop = Workshop(
        Sources(
            file.data,
            file.teachers,
            file.arch.family,
            file.seed,
            file.training,
            options=file.family_options,
            task=file.task.kind,
            score=file.task.score,
            kept=None if run is None else run.sources.kept,
        ),
        data_root=data_root,
        cache=cache,
        device=resolve_device(device or file.device),
        made_on=MadeOn(file.data_fingerprint, reader="afterwards"),
        notify=notify,
    )
    if run is not None:
        workshop.data = run.data
    return workshop


def open_training(
    file: TrainFile,
    *,
    data_root: Path,
    cache: Path,
    device: str | None,
    run: Workshop | None = None,
    notify: Callable[[str], None],
) -> Workshop:
    """Return what the training of `file` works with, opened and compared with it; `run` is as in `training_workshop`.

    Raises DataError or TeacherError when data or teacher are not those of the file, ConfigError for a device that is
    not there.
    """
    workshop = training_workshop(file, data_root=data_root, cache=cache, device=device, run=run, notify=notify)
    check_data(file, workshop.data)
    data, teachers = workshop.data, workshop.teachers
    if workshop.teacher is not None:
        check_teacher(file, workshop.teacher)
    for name, was in file.further_fingerprints.items():
        check_hash(teachers[name], was, f"further_fingerprints.{name}")
    if not file.teacher_fingerprint:  # those of a study have been looked at when the study was opened
        for teacher in teachers.values():
            report_teacher(
                teacher, data, workshop.validation_indices, file.training, device=workshop.device, notify=notify
            )
        with torch.random.fork_rng(devices=[]):
            student = workshop.family.build(file.student)
        check_losses(file.recipe, teachers, {"the student": student}, data, device=workshop.device)
    return workshop


def check_data(file: TrainFile, data: Data) -> None:
    """Raise DataError naming everything in which `data` is not what `file` was written for."""
    expected: list[tuple[str, Any, Any]] = [
        ("data_fingerprint", file.data_fingerprint, data.fingerprint),
        ("task", asdict(file.task), asdict(data.task)),
        ("class_names", tuple(file.class_names), tuple(data.class_names)),
        ("statistics", dict(file.statistics), dict(data.statistics)),
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


def check_hash(teacher: Teacher, was: str, where: str) -> None:
    """Raise TeacherError, under the key `where`, when the content of `teacher` has another hash than `was`."""
    if teacher.fingerprint != was:
        what = f"the teacher {teacher.name} is not the one of this training: {teacher.fingerprint} instead"
        raise TeacherError(Problem(where, what, was))


def check_teacher(file: TrainFile, teacher: Teacher) -> None:
    """Raise TeacherError when `teacher` is another one than `file` names by its hash, or answers otherwise."""
    if file.teacher_fingerprint:
        check_hash(teacher, file.teacher_fingerprint, "teacher_fingerprint")
    if what := what_differs(file.teacher_answers, teacher.answers):
        raise TeacherError(
            Problem(
                "teacher_answers", f"the teacher {teacher.name} {what}", "the teacher as it was, or leave this key out"
            )
        )
