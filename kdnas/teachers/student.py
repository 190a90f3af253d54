"""A student family's member as the teacher, trained once on the training split with cross entropy and cached."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdnas.plugins import short_name
from kdnas.tasks._images import DEVIATION, MEAN
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.teachers._adapting import Expected, enter_teacher, fit_teacher


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
    statistics = context.learnt.statistics
    if MEAN in statistics:
        teacher = fit_teacher(name, network, context, Expected(statistics[MEAN], statistics[DEVIATION]), facts=facts)
    else:
        teacher = enter_teacher(name, network, context, context.learnt, facts)
    return dataclasses.replace(teacher, arch=arch)
