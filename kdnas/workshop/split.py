"""The split of the training samples: whether scores can be made on it, and what the user should know of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdnas.core.data import Data
from kdnas.core.objective import MRR, OF_CLASSES, OF_VALUES
from kdnas.core.text import TextData
from kdnas.core.words import counted, escaped
from kdnas.errors import DataError, Problem

_FEW_SCORED = 100
"""Below so many validation samples, the coarseness of a score is reported."""
_FEW_LEARNT = 5
_UNEVEN = 10
"""From so many times the smallest class on, the imbalance is reported."""
_LISTED = 10


def check_split(data: Data, validation_indices: np.ndarray, fraction: float) -> None:
    """Raise DataError where no score can be made on the training samples at `validation_indices`."""
    if not data.class_names:
        _check_blocks(data, len(validation_indices), fraction)
        return
    one, several = data.task.sample, data.task.samples
    labels = data.train.targets[validation_indices]
    allowed = f"two or more training {several} of at least two classes"
    if not len(labels):
        left = f"no {one} is left to score students on"
        what = f"{left}: each class has one training {one}, which stays to be learnt from"
        raise DataError(Problem(f"{data.name}: validation_fraction {fraction:g}", what, allowed))
    for names, known in data.questions(labels):
        scored = np.unique(known)
        if len(scored) < 2:
            only = escaped(names[scored[0]]) if len(scored) else "no class"
            what = f"all validation {several} are of class {only}: the other classes have one training {one} each"
            raise DataError(Problem(f"{data.name}: validation_fraction {fraction:g}", what, allowed))


def _check_blocks(data: Data, scored: int, fraction: float) -> None:
    """Raise DataError where samples without classes, of which `scored` are to be scored on, leave one part empty."""
    if not 0 < scored < len(data.train):
        what = f"{scored} of {counted(len(data.train), data.task.sample)} are left to score students on"
        raise DataError(Problem(f"{data.name}: validation_fraction {fraction:g}", what, "one or more, but not all"))


def split_notes(data: Data, train_indices: np.ndarray, validation_indices: np.ndarray) -> tuple[str, ...]:
    """Return what the user should know of a split of the training samples: classes of few samples, coarse scores."""
    notes, targets = [], data.train.targets
    for count, kind in ((len(validation_indices), "validation"), (len(data.test), "test")):
        if count < _FEW_SCORED and data.task.score.is_fraction and data.task.score != MRR:
            steps = f"moves in steps of {100 / count:.1f} points: {counted(count, data.task.sample)}"
            notes.append(f"{kind} {data.task.score.name} {steps}")
    if not data.class_names:
        return tuple(notes)
    parts = zip(data.questions(targets[train_indices]), data.questions(targets[validation_indices]), strict=True)
    for (names, learnt), (_, scored) in parts:
        every = tuple(map(escaped, names))
        notes += _class_notes(data, every, *(np.bincount(part, minlength=len(names)) for part in (learnt, scored)))
        if len(learnt) < len(train_indices):
            without = f"{len(train_indices) - len(learnt):,} of the {len(train_indices):,} training {data.task.samples}"
            notes.append(f"{without} have no label" + (f" ({every[0].partition(':')[0]})" if data.task.heads else ""))
    return tuple(notes)


def _class_notes(data: Data, names: tuple[str, ...], learnt: np.ndarray, scored: np.ndarray) -> list[str]:
    """Return what is to be known of classes [K] that have so many samples to learn from and to score on."""
    notes = []
    unscored = [name for name, count in zip(names, scored, strict=True) if count == 0]
    if unscored:
        notes.append(
            f"no validation {data.task.sample} of class {_listed(unscored)}: no score measures how well it is learnt"
        )
    few = [name for name, count, there in zip(names, learnt, scored, strict=True) if count < _FEW_LEARNT and there]
    if few:
        notes.append(f"fewer than {_FEW_LEARNT} {data.task.samples} to learn from of class {_listed(few)}")
    if learnt.max() >= _UNEVEN * learnt.min():
        most, least = int(learnt.argmax()), int(learnt.argmin())
        notes.append(
            f"uneven classes: {learnt[most]:,} {data.task.samples} to learn from of {names[most]}, {learnt[least]:,} "
            f"of {names[least]}; always answering {names[most]} scores {scored[most] / scored.sum():.0%}"
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


def check_score(data: Data) -> None:
    """Raise DataError where students cannot be scored on the data by the study's score."""
    score = data.scored_by
    of_numbers = isinstance(data, TextData) and data.predicts_values
    if score in OF_CLASSES and of_numbers:
        what = f"its labels are numbers to be predicted, a regression, which is not scored by {score.name}"
        allowed = f"objectives with {' or '.join(one.name for one in OF_VALUES)}; data: {{labels: classes}}"
        raise DataError(Problem(f"data: {data.name}", what, allowed))
    if score in OF_VALUES and not of_numbers:
        what = f"its labels are classes, which are not scored by {score.name}"
        allowed = f"objectives with {', '.join(one.name for one in OF_CLASSES)}; data: {{labels: values}} for numbers"
        raise DataError(Problem(f"data: {data.name}", what, allowed))
