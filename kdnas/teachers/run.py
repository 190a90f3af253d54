"""A trained student of an earlier run as the teacher, so that what it knows stays while others learn something new."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kdnas.core.pick import DEFAULT_PICK
from kdnas.errors import Problem, TeacherError
from kdnas.tasks._images import DEVIATION, MEAN
from kdnas.teachers import TEACHERS, EarlierStudent, Teacher, TeacherContext
from kdnas.teachers._adapting import Expected, enter_teacher, fit_teacher
from kdnas.teachers._class_names import Naming, class_order

_NEAR = 0.1
"""Differences of statistics that are not told."""


@TEACHERS.register
def run(context: TeacherContext, *, run: str, pick: str = DEFAULT_PICK) -> Teacher:
    """A retrained student of an earlier run of kdnas, as that run has it, with its own normalisation.

    Its classes are matched with the data's by name. With the earlier study's data gone and new ones in their place,
    a student that learns of it keeps what it knew (learning without forgetting, Li and Hoiem, ECCV 2016); a student of
    its own family whose classes have the same order, or one that is cut out of it (`space: {derive: teacher}`), begins
    with its weights. Raises TeacherError.

    Args:
        context: What the study hands over.
        run: The run folder, relative to the data root.
        pick: Which of its students: `knee`, `best`, an arch_id, `macs<=5e6` ...; by default what
            `kdnas export` takes.
    """
    earlier = context.earlier_student(context.data_root / Path(run).expanduser(), pick)
    name, facts = f"student of {earlier.study}", {"run": earlier.study}
    naming = Naming.of(earlier.class_names, "the run's class names") if earlier.class_names else None
    teacher = _fitted(name, earlier, context, facts, naming)
    order = getattr(teacher.module, "order", None)
    if earlier.arch is not None and order is not None and order.tolist() != list(range(len(earlier.class_names))):
        note = "its classes are others or in another order: no student begins with its weights"
        return dataclasses.replace(teacher, notes=(*teacher.notes, note))
    return dataclasses.replace(teacher, arch=earlier.arch, notes=(*teacher.notes, *_moved(earlier, context)))


def _moved(earlier: EarlierStudent, context: TeacherContext) -> tuple[str, ...]:
    """Return a note where a student that begins with its weights sees pixels otherwise than it did."""
    theirs, ours = earlier.statistics, context.data.statistics
    if earlier.arch is None or MEAN not in theirs or MEAN not in ours:
        return ()
    apart = max(abs(a - b) / std for a, b, std in zip(theirs[MEAN], ours[MEAN], theirs[DEVIATION], strict=True))
    wider = max(max(a / b, b / a) for a, b in zip(theirs[DEVIATION], ours[DEVIATION], strict=True))
    if apart < _NEAR and wider < 1 + _NEAR:
        return ()
    told = f"means {apart:.2g} deviations apart, deviations {wider:.2g}-fold"
    return (
        f"students that begin with its weights normalise by {context.data.name}, which differs from its data: {told}",
    )


def _fitted(
    name: str, earlier: EarlierStudent, context: TeacherContext, facts: dict[str, str], naming: Naming | None
) -> Teacher:
    """Return the earlier student as the teacher of the context's data. Raises TeacherError where it cannot be."""
    task, statistics = earlier.task, earlier.statistics
    if any(taken.kind == "tokens" for taken in task.inputs):
        what = f"the students of {earlier.study} read tokens, and a run does not tell of which tokenizer"
        way_out = (
            "type: sequence_classifier or causal_lm, of the folder that `kdnas export --format huggingface` writes"
        )
        raise TeacherError(Problem("teacher.run", what, way_out))
    if MEAN in statistics and MEAN in context.data.statistics:
        size = task.image_size
        expected = Expected(tuple(statistics[MEAN]), tuple(statistics[DEVIATION]), size)
        return fit_teacher(name, earlier.network, context, expected, facts=facts, naming=naming)
    given = context.data.task
    if (task.kind, task.inputs) != (given.kind, given.inputs):
        what = f"is of {task.kind}, and takes other {task.samples} than those of {context.data.name}"
        raise TeacherError(Problem("teacher.run", what, "a run on samples of the same shape"))
    order, notes = class_order(naming, context.data, task.outputs)
    if order is not None:
        what = f"names its classes in another order than {context.data.name}"
        raise TeacherError(Problem("teacher.run", what, "the same order"))
    teacher = enter_teacher(name, earlier.network, context, earlier, facts)
    return dataclasses.replace(teacher, notes=(*notes, *teacher.notes))
