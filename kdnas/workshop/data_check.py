"""The data, looked at before anything is trained: whether its split leaves enough to learn from and to score on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdnas.core.data import ImageData
from kdnas.core.words import counted, escaped
from kdnas.errors import DataError, Problem

_FEW_SCORED = 100
"""Below so many validation images, how coarse a score is is said."""
_FEW_LEARNT = 5
_UNEVEN = 10
"""From so many times the smallest class on, the largest is told of."""
_LISTED = 10


def check_split(data: ImageData, validation_indices: np.ndarray, fraction: float) -> None:
    """Raise DataError where no score can be made on the training images at `validation_indices`."""
    labels = data.train.targets[validation_indices]
    allowed = "two or more training images of at least two classes"
    if not len(labels):
        what = "no image is left to score students on: each class has one training image, which stays to be learnt from"
        raise DataError(Problem(f"{data.name}: validation_fraction {fraction:g}", what, allowed))
    scored = np.unique(labels)
    if len(scored) < 2:
        only = escaped(data.class_names[scored[0]])
        what = f"all validation images are of class {only}: the other classes have one training image each"
        raise DataError(Problem(f"{data.name}: validation_fraction {fraction:g}", what, allowed))


def split_notes(data: ImageData, train_indices: np.ndarray, validation_indices: np.ndarray) -> tuple[str, ...]:
    """Return what the user should know of a split of the training images: classes of few images, coarse scores."""
    names, classes = tuple(map(escaped, data.class_names)), data.task.outputs
    learnt = np.bincount(data.train.targets[train_indices], minlength=classes)
    scored = np.bincount(data.train.targets[validation_indices], minlength=classes)
    tested = len(data.test)
    notes = []
    unscored = [name for name, count in zip(names, scored, strict=True) if count == 0]
    if unscored:
        notes.append(f"no validation image of class {_listed(unscored)}: no score tells how well it is learnt")
    few = [name for name, count, there in zip(names, learnt, scored, strict=True) if count < _FEW_LEARNT and there]
    if few:
        notes.append(f"fewer than {_FEW_LEARNT} images to learn from of class {_listed(few)}")
    for count, kind in ((len(validation_indices), "validation"), (tested, "test")):
        if count < _FEW_SCORED:
            notes.append(f"{kind} accuracies move in steps of {100 / count:.1f} points: {counted(count, 'image')}")
    if learnt.max() >= _UNEVEN * learnt.min():
        most, least = int(learnt.argmax()), int(learnt.argmin())
        notes.append(
            f"uneven classes: {learnt[most]:,} images to learn from of {names[most]}, {learnt[least]:,} of "
            f"{names[least]}; always answering {names[most]} scores {scored[most] / scored.sum():.0%}"
        )
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"
