"""Faults of a data set seen in its decoded arrays: equal images, few values, classes without test images.

None of it stops a study, since all of it may be meant; each is a note for the user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from kdnas.core.words import escaped
from kdnas.errors import DataError, Problem

_MANY = 0.01
"""From this share of the images on, equal ones are reported."""
_LISTED = 10


def check_scales(name: str, images: np.ndarray, train_count: int) -> None:
    """Raise DataError where one split of uint8 images [N, C, H, W] reaches no pixel above 1 of 255, and the other does.

    That is what becomes of floats in 0..1 that are made bytes.
    """
    brightest = {"training": int(images[:train_count].max()), "test": int(images[train_count:].max())}
    if min(brightest.values()) <= 1 < max(brightest.values()):
        what = "; ".join(f"no {split} pixel is above {value}" for split, value in brightest.items())
        raise DataError(Problem(f"{name}: images", f"the splits are on different scales: {what}", "0 to 255 in both"))


def content_notes(
    images: np.ndarray, labels: np.ndarray, tested: Sequence[tuple[Sequence[str], np.ndarray]], train_count: int
) -> list[str]:
    """Return notes on uint8 images [N, C, H, W] and labels [N, ...], of which the first `train_count` are training's.

    Images are equal when every value is. `tested` are the class names of each task, and its labels of the test images.
    """
    dark = ["no pixel is above 1 of 255: were they in 0..1 and made bytes?"] if images.max() <= 1 else []
    missing = [note for names, own in tested for note in _missing_in_test(own[own >= 0], names)]
    which = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    return [*dark, *_equal_images(images, which, train_count), *missing]


def _equal_images(images: np.ndarray, labels: np.ndarray, train_count: int) -> list[str]:
    digests = np.array([hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images], dtype="V16")
    _, which = np.unique(digests.view("<u8").reshape(-1, 2), axis=0, return_inverse=True)
    which = which.reshape(-1)  # which of the different images each is
    train, test = which[:train_count], which[train_count:]
    notes = []
    copies = np.bincount(train)
    repeated, largest = int((copies[train] > 1).sum()), int(copies.max())
    if repeated > max(_MANY * train_count, 1):
        different = int((copies > 0).sum())
        notes.append(
            f"{repeated:,} of the {train_count:,} training images are equal, value by value, to another one "
            f"({different:,} different images; the commonest occurs {largest:,} times)"
            + (": almost nothing can be learnt from them" if different < train_count / 10 else "")
            + ("; scores on held-out copies of them are too high" if largest < train_count / 2 else "")
        )
    leaked = int(np.isin(test, train).sum())
    if leaked:
        notes.append(
            f"{leaked:,} of the {len(test):,} test images are also training images, value by value: "
            "test accuracies are too high"
        )
    least = np.full(int(which.max()) + 1, len(labels) + 1)
    most = np.full(int(which.max()) + 1, -1)
    np.minimum.at(least, which, labels)
    np.maximum.at(most, which, labels)
    torn = int((least < most)[which].sum())
    if torn:
        notes.append(f"{torn:,} images are equal to one of another class: their labels contradict each other")
    return notes


def _missing_in_test(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    counts = np.bincount(labels, minlength=len(class_names))
    missing = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if not missing:
        return []
    more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
    return [f"no test image of class {escaped(', '.join(missing[:_LISTED]))}{more}"]
