"""A student family's member as the teacher, trained once on the training split with cross entropy and cached."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdnas.core.answers import sketch
from kdnas.core.data import Data
from kdnas.nn.exact import exact_arithmetic
from kdnas.nn.taps import stage_names
from kdnas.plugins import short_name
from kdnas.tasks import task_of
from kdnas.tasks._images import DEVIATION, MEAN
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import Expected, check_finite, fingerprint, fit_teacher, spread


@TEACHERS.register
def student(
    context: TeacherContext, *, family: str, choices: dict[str, Any], training: dict[str, Any] | None = None
) -> Teacher:
    """A kdnas student family's member, trained on the spot with cross entropy and cached.

    `training` holds the fields of a study's training section. The validation split is not trained on. Raises
    ConfigError where the family, its choices or the training settings are wrong.

    Args:
        context: What the study hands over.
        family: A student family: see `kdnas list students`.
        choices: Its architecture: a value for each choice of the family.
        training: As a study's training section; its defaults where not given.
    """
    network, arch = context.train_student(family, choices, training or {}, context.notify)
    name, facts = f"{short_name(family)} trained here", {"family": short_name(family)}
    statistics = context.data.statistics
    if MEAN in statistics:
        teacher = fit_teacher(name, network, context, Expected(statistics[MEAN], statistics[DEVIATION]), facts=facts)
    else:
        teacher = _entered(name, network, context, facts)
    return dataclasses.replace(teacher, arch=arch)


def _entered(name: str, network: nn.Module, context: TeacherContext, facts: dict[str, Any]) -> Teacher:
    """Return `network`, built for the data's own task, as the teacher of samples that are no images."""
    data = context.data
    stages, classifier = stage_names(network)
    module = task_of(data.task).entrance(network, data).eval().requires_grad_(False).to(context.device)
    with exact_arithmetic(), torch.no_grad():
        answers = module(*(part.to(context.device) for part in _probe(data)))
    check_finite(answers, data)
    few = answers.flatten(0, -2)[:: answers.shape[1] if answers.ndim > 2 else 1]
    return Teacher(
        name,
        module,
        tuple(f"network.{stage}" for stage in stages),
        classifier and f"network.{classifier}",
        fingerprint(network, facts),
        answers=sketch(few.cpu().numpy()),
    )


def _probe(data: Data) -> list[Tensor]:
    """Return a few fixed training samples of the data, a tensor [n, ...] for each of its inputs."""
    places = spread(len(data.train))
    parts = [torch.from_numpy(np.array(data.train.inputs[part.name][places])) for part in data.task.inputs]
    return [part if part.is_floating_point() else part.long() for part in parts]
