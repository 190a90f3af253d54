"""Data that the user's own function loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.datasets._cache import ImageWriter, Labelling, cached, fingerprint
from kdnas.datasets._inputs import Problems, as_channels_first, check_labels, names_or_numbers, with_missing
from kdnas.datasets._own_function import returned_splits

_RETURNS = "(train_images, train_labels, test_images, test_labels) or the same with class_names"


@DATASETS.register
def module(
    data_root: Path,
    cache: Path,
    *,
    function: str,
    options: dict[str, Any] | None = None,
    missing_label: int | None = None,
) -> ImageData:
    """Arrays from a function of your own: `module:function`, or `path/to/file.py:function` under the data root.

    It is called as `function(data_root, **options)` and returns (train_images, train_labels, test_images, test_labels)
    or the same with class_names: numpy arrays (or what `numpy.asarray` takes), images uint8 [N, H, W], [N, H, W, C] or
    [N, C, H, W] with C 1 or 3, labels integers [N] from 0. A search calls it once: its workers, and what is done with
    the run afterwards, take what it gave from the cache, though another call may draw another split. A search that is
    resumed calls it again, to check whether it has changed. Its file's folder and the data root are importable by it.

    Args:
        data_root: Handed to the function; file paths are relative to it.
        cache: kdnas's cache folder.
        function: The function.
        options: Keyword arguments of the function.
        missing_label: What stands in the place of a label that is not known, as in a target domain without labels: what
            a teacher says of such a sample is all that is learnt from it.

    Raises DataError where the function fails or returns something else; ConfigError where it cannot be imported.
    """
    result, notes = returned_splits(function, data_root, options, _RETURNS)
    train, train_labels, test, test_labels, names = _checked(result, function)
    labels = with_missing(np.concatenate([train_labels, test_labels]), missing_label)
    class_names = names_or_numbers(names, labels)

    def decode(writer: ImageWriter) -> Labelling:
        writer.extend(train)
        writer.extend(test)
        is_test = np.arange(len(labels)) >= len(train)
        return Labelling(class_names, labels, is_test, partly=missing_label is not None)

    content = [
        fingerprint(images, part, class_names, len(train))
        for images, part in ((train, labels[: len(train)]), (test, labels[len(train) :]))
    ]
    data = cached(function.rpartition(":")[2], cache, {"content": content}, decode)
    return dataclasses.replace(data, notes=(*data.notes, *notes))


def _checked(
    result: tuple[Any, ...], function: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...] | None]:
    """Return the function's arrays as uint8 [N, C, H, W] and int64 [N]. Raises DataError with every problem."""
    problems = Problems()
    arrays = []
    for split, images, labels in (("train", *result[0:2]), ("test", *result[2:4])):
        checked = as_channels_first(np.asarray(images), "auto", f"{function}: {split}_images", problems)
        arrays += [checked, check_labels(np.asarray(labels), len(checked), f"{function}: {split}_labels", problems)]
        if not len(checked):
            problems.add(f"{function}: {split}_images", "is empty")
    if arrays[0].shape[1:] != arrays[2].shape[1:] and not problems.count:
        problems.add(function, f"train images are {list(arrays[0].shape[1:])}, test images {list(arrays[2].shape[1:])}")
    names = None
    if len(result) == 5:
        names = tuple(map(str, result[4]))
    problems.raise_if_any()
    return arrays[0], arrays[1], arrays[2], arrays[3], names
