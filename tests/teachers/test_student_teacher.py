"""The `student` teacher: what the training layer returns, behind the data's own normalisation."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.teachers import TEACHERS


def test_the_trained_student_is_fed_normalised_images(open_context, raw_images) -> None:
    asked = []

    def train(family, choices, training, notify):
        asked.append((family, choices, training))
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        return nn.Sequential(*layers), Arch.of(family, choices)

    context = open_context(train_student=train)
    options = {"family": "resnet", "choices": {"width": 8}, "training": {"epochs": 2}}
    teacher = TEACHERS.build("student", context, **options)
    assert asked == [("resnet", {"width": 8}, {"epochs": 2})]
    images = raw_images(context)
    mean, std = (torch.tensor(part)[:, None, None] for part in (context.data.channel_mean, context.data.channel_std))
    expected = train("", {}, {}, None)[0].eval()((images - mean) / std)
    torch.testing.assert_close(teacher.module(images), expected)
    assert teacher.notes == ()
    theirs = dataclasses.replace(context.data, channel_mean=(10.0, 20.0, 30.0), channel_std=(5.0, 6.0, 7.0))
    learnt = TEACHERS.build("student", dataclasses.replace(context, others=theirs), **options)
    mean, std = (torch.tensor(part)[:, None, None] for part in (theirs.channel_mean, theirs.channel_std))
    expected = train("", {}, {}, None)[0].eval()((images - mean) / std)
    torch.testing.assert_close(learnt.module(images), expected, msg="it normalises by what it learnt from")
    assert teacher.arch == Arch.of("resnet", {"width": 8})
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
