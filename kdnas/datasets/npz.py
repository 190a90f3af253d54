"""NumPy .npz files with one array for images and one for labels in each split."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kdnas.core.data import ImageData, class_of
from kdnas.core.task import UNLABELLED, Head
from kdnas.datasets import DATASETS
from kdnas.datasets._cache import ImageWriter, Labelling, cached, heads_of
from kdnas.datasets._inputs import (
    Problems,
    TestFraction,
    as_channels_first,
    carve_test,
    check_labels,
    file_identity,
    locate,
    names_or_numbers,
    with_missing,
)
from kdnas.errors import DataError, Problem

TaskName = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""What one of several tasks is called."""


@DATASETS.register
def npz(
    data_root: Path,
    cache: Path,
    *,
    path: str,
    train_images: str = "train_images",
    train_labels: str | dict[TaskName, str] = "train_labels",
    test_images: str = "test_images",
    test_labels: str | dict[TaskName, str] = "test_labels",
    test_fraction: TestFraction | None = None,
    layout: Literal["auto", "NCHW", "NHWC", "NHW"] = "auto",
    class_names: tuple[str, ...] | dict[TaskName, tuple[str, ...]] | None = None,
    unlabelled_images: str | None = None,
    missing_label: int | None = None,
    train_keys: str | None = None,
    test_keys: str | None = None,
) -> ImageData:
    """A NumPy .npz file: uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W], integer labels [N] from 0.

    The defaults are MedMNIST's array names. Files are read without pickle; one array at a time is held in memory.

    Args:
        data_root: The folder that `path` is relative to.
        cache: kdnas's cache folder.
        path: The .npz file.
        train_images: Name of the array of training images.
        train_labels: Name of the array of their labels, [N] or [N, 1]; of several tasks on the images one array each,
            `{TASK: NAME, ...}`, for a network that does all of them.
        test_images: Name of the array of test images.
        test_labels: Name of the array of their labels.
        test_fraction: Share of every class of the training arrays that makes the test split, instead of test arrays.
        layout: The axes of the images; auto finds them by the channel axis of length 1 or 3, the last axis first.
        class_names: Names in the order of the labels, of several tasks by task; the numbers where not given.
        unlabelled_images: Name of an array of images without labels, which are trained on with the others: only a
            teacher is learnt from on them.
        missing_label: What stands in the place of a label that is not known.
        train_keys: Name of an array [N] that tells each training image from all others, so that a teacher's own samples
            are found (`pair: key`).
        test_keys: The same of the test images.

    Raises DataError naming every array that is missing or of a wrong type, shape or range.
    """
    tasks = list(train_labels) if isinstance(train_labels, dict) else []
    splits = _splits((train_images, train_labels), None if test_fraction is not None else (test_images, test_labels))
    keyed = _keyed(train_keys, test_keys, len(splits), has_others=unlabelled_images is not None)
    others = [*([] if unlabelled_images is None else [unlabelled_images]), *keyed]
    wanted = [*(name for part in splits for name in part), *others]
    source = locate(data_root, path, f"a .npz file with the arrays {', '.join(wanted)}")
    identity = {
        "file": file_identity(source),
        "arrays": wanted,
        "test_fraction": test_fraction,
        "layout": layout,
        "class_names": class_names,
        **({"unlabelled": unlabelled_images} if unlabelled_images is not None else {}),
        **({"missing": missing_label} if missing_label is not None else {}),
        **({"tasks": tasks} if tasks else {}),
        **({"keys": keyed} if keyed else {}),
    }

    def decode(writer: ImageWriter) -> Labelling:
        labels, keys, unlabelled = _read(source, splits, keyed, unlabelled_images, layout, writer)
        every = with_missing(np.concatenate(labels), missing_label)
        is_test = np.arange(len(every)) >= len(labels[0])
        if test_fraction is not None:
            is_test = carve_test(np.unique(every, axis=0, return_inverse=True)[1].reshape(-1), test_fraction)
        names, heads = _named(tasks, class_names, every)
        none = np.full((unlabelled, every.shape[1]), UNLABELLED)
        every, is_test = np.concatenate([every, none]), np.concatenate([is_test, np.zeros(unlabelled, dtype=bool)])
        partly = missing_label is not None or unlabelled > 0
        own = every if tasks else every[:, 0]
        return Labelling(names, own, is_test, heads=heads, partly=partly, keys=np.concatenate(keys) if keys else None)

    return cached(source.name, cache, identity, decode)


_Split = tuple[str, str | Mapping[str, str]]
"""The name of an array of images, and that of their labels, or of those of each task."""


def _splits(train: _Split, test: _Split | None) -> list[list[str]]:
    """Return the arrays of each split: images, then labels. Raises DataError where the splits have other tasks."""
    labels = train[1]
    if isinstance(labels, Mapping) and len(labels) < 2:
        raise DataError(Problem("data.train_labels", "names one task alone", "an array, or one for each of several"))
    tasks = [None] if isinstance(labels, str) else list(labels)
    splits = []
    for images, own in (train, *(() if test is None else (test,))):
        if (set(own) if isinstance(own, Mapping) else {None}) != set(tasks):
            raise DataError(Problem("data.test_labels", "is of other tasks than train_labels", "the same tasks"))
        splits.append([images, *([own] if isinstance(own, str) else (own[str(task)] for task in tasks))])
    return splits


def _keyed(train: str | None, test: str | None, splits: int, *, has_others: bool) -> list[str]:
    """Return the arrays of keys of each split. Raises DataError where some images have keys and others have none."""
    keyed = [name for name in (train, test) if name is not None]
    if keyed and (len(keyed) != splits or train is None or has_others):
        what = "are not of every image"
        raise DataError(Problem("data.train_keys", what, "keys of all arrays of images, or of none"))
    return keyed


def _read(
    source: Path,
    splits: Sequence[Sequence[str]],
    keyed: Sequence[str],
    unlabelled: str | None,
    layout: str,
    writer: ImageWriter,
) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Write all images; return each split's labels and keys, and how many images have no labels."""
    problems = Problems()
    wanted = [*(name for part in splits for name in part), *keyed, *([] if unlabelled is None else [unlabelled])]
    with _opened(source) as file:
        for name in wanted:
            if name not in file.files:
                of_test = len(splits) > 1 and name in splits[1]
                instead = ", or no test arrays but `test_fraction`" if of_test else ""
                problems.add(f"{source}: {name}", "there is no such array", ", ".join(file.files) + instead)
        problems.raise_if_any()
        labels = [_split(file, source, names, layout, writer, problems) for names in splits]
        keys = [_keys(file, source, *pair, problems) for pair in zip(keyed, map(len, labels), strict=False)]
        count = 0 if unlabelled is None else _write_images(file, source, unlabelled, layout, writer, problems)
    problems.raise_if_any()
    return labels, keys, count


def _named(
    tasks: Sequence[str], class_names: Sequence[str] | Mapping[str, Sequence[str]] | None, labels: np.ndarray
) -> tuple[tuple[str, ...], tuple[Head, ...]]:
    """Return the class names of all tasks, and where each one's stand; of labels [N, 1] the names alone."""
    if isinstance(class_names, Mapping) != bool(tasks) and class_names is not None:
        what = "are of several tasks" if not tasks else "are of one task, and train_labels names several"
        raise DataError(Problem("data.class_names", what, "as train_labels has it"))
    if not tasks:
        assert not isinstance(class_names, Mapping)
        return names_or_numbers(class_names, labels), ()
    stated = class_names if isinstance(class_names, Mapping) else {}
    own = {task: names_or_numbers(stated.get(task), labels[:, place]) for place, task in enumerate(tasks)}
    names = tuple(class_of(task, name) for task, each in own.items() for name in each)
    return names, heads_of((task, len(each)) for task, each in own.items())


def _opened(source: Path) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(Problem(str(source), f"is not a .npz file or is cut short: {error}")) from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise DataError(Problem(str(source), "holds a single array", "a .npz file with images and labels"))
    return file


def _array(file: np.lib.npyio.NpzFile, source: Path, name: str) -> np.ndarray:
    try:
        return file[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        hint = (
            " (arrays of Python objects are not loaded: they would execute code)"
            if "allow_pickle" in str(error)
            else ""
        )
        raise DataError(Problem(f"{source}: {name}", f"cannot be read: {error}{hint}")) from error


def _split(
    file: np.lib.npyio.NpzFile,
    source: Path,
    names: Sequence[str],
    layout: str,
    writer: ImageWriter,
    problems: Problems,
) -> np.ndarray:
    """Write one split's images and return its labels, int64 [N, P]; `names` are the array of images, then of labels."""
    count = _write_images(file, source, names[0], layout, writer, problems)
    columns = [check_labels(_array(file, source, name), count, f"{source}: {name}", problems) for name in names[1:]]
    return np.stack([column if len(column) == count else np.zeros(count, np.int64) for column in columns], axis=1)


def _keys(file: np.lib.npyio.NpzFile, source: Path, name: str, count: int, problems: Problems) -> np.ndarray:
    """Return the keys [N] of one split as texts."""
    keys = _array(file, source, name)
    if keys.shape != (count,) or keys.dtype.kind not in "iuUS":
        problems.add(f"{source}: {name}", f"keys are {keys.dtype} {list(keys.shape)}", f"texts or integers [{count}]")
    return keys.astype(str)


def _write_images(
    file: np.lib.npyio.NpzFile, source: Path, name: str, layout: str, writer: ImageWriter, problems: Problems
) -> int:
    """Write the images of an array and return how many there are."""
    before = problems.count
    images = as_channels_first(_array(file, source, name), layout, f"{source}: {name}", problems)
    if writer.shape not in (None, images.shape[1:]):
        problems.add(
            f"{source}: {name}",
            f"images are {list(images.shape[1:])}, the training images {list(writer.shape or ())}",
        )
    if problems.count == before:
        writer.extend(images)
    return len(images)
