"""A student of an earlier run as the teacher: with its own normalisation, its classes found by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.task import image_classification
from kdnas.core.text import text_classification
from kdnas.errors import TeacherError
from kdnas.tasks._images import DEVIATION, MEAN
from kdnas.teachers import TEACHERS, EarlierStudent

NAMES = tuple(f"class{index}" for index in range(10))


def earlier(**changes) -> EarlierStudent:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    statistics = {MEAN: (100.0, 110.0, 120.0), DEVIATION: (50.0, 60.0, 70.0)}
    task, arch = image_classification((3, 32, 32), 10), Arch.of("resnet", {"width": 8})
    return dataclasses.replace(EarlierStudent("before", network.eval(), arch, task, NAMES, statistics), **changes)


def opened(context, student: EarlierStudent, asked: list | None = None):
    def earlier_student(folder: Path, pick: str) -> EarlierStudent:
        if asked is not None:
            asked.append((folder, pick))
        return student

    return TEACHERS.build("run", dataclasses.replace(context, earlier_student=earlier_student), run="runs/a")


def test_it_sees_what_it_saw_in_its_own_run(open_context, raw_images) -> None:
    context, student, asked = open_context(), earlier(), []
    teacher = opened(context, student, asked)
    assert asked == [(context.data_root / "runs/a", "near-best")]
    mean, std = (torch.tensor(student.statistics[name])[:, None, None] for name in (MEAN, DEVIATION))
    images = raw_images(context)
    torch.testing.assert_close(teacher.module(images), student.network((images - mean) / std))
    assert teacher.arch == student.arch, "students of its family begin with its weights"
    assert any("normalise by random, which differs" in note for note in teacher.notes)
    alike = opened(context, earlier(statistics=dict(context.data.statistics)))
    assert not any("normalise" in note for note in alike.notes)
    assert opened(context, earlier()).fingerprint == teacher.fingerprint


def test_its_classes_are_found_by_name_and_its_size_is_kept(open_context, raw_images) -> None:
    context = open_context(size=16)
    teacher = opened(context, earlier(class_names=NAMES[::-1]))
    straight = opened(context, earlier())
    images = raw_images(context)
    torch.testing.assert_close(teacher.module(images), straight.module(images).flip(1))
    assert straight.arch is not None
    assert teacher.arch is None, "a student that began with its weights would name wrong classes"
    assert any("another order" in note for note in teacher.notes)
    assert any("resized to 32x32" in note for note in teacher.notes)
    with pytest.raises(TeacherError, match="class_names"):
        opened(context, earlier(class_names=(*NAMES[:8], "lion", "tiger")))


def test_a_run_on_other_samples_is_refused(open_context) -> None:
    of_texts = earlier(task=text_classification(16, 100, 10), statistics={})
    with pytest.raises(TeacherError, match="huggingface"):
        opened(open_context(), of_texts)
