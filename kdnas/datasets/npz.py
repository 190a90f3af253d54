"""NumPy .npz files with one array for images and one for labels in each split."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.datasets._cache import ImageWriter, Labelling, cached
from kdnas.datasets._inputs import (
    Problems,
    TestFraction,
    as_channels_first,
    carve_test,
    check_labels,
    file_identity,
    locate,
    names_or_numbers,
)
from kdnas.errors import DataError, Problem


@DATASETS.register
def npz(
    data_root: Path,
    cache: Path,
    *,
    path: str,
    train_images: str = "train_images",
    train_labels: str = "train_labels",
    test_images: str = "test_images",
    test_labels: str = "test_labels",
    test_fraction: TestFraction | None = None,
    layout: Literal["auto", "NCHW", "NHWC", "NHW"] = "auto",
    class_names: tuple[str, ...] | None = None,
) -> ImageData:
    """A NumPy .npz file: uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W], integer labels [N] from 0.

    The defaults are MedMNIST's array names. Files are read without pickle; one array at a time is held in memory.

    Args:
        data_root: The folder that `path` is relative to.
        cache: kdnas's cache folder.
        path: The .npz file.
        train_images: Name of the array of training images.
        train_labels: Name of the array of their labels, [N] or [N, 1].
        test_images: Name of the array of test images.
        test_labels: Name of the array of their labels.
        test_fraction: Share of every class of the training arrays that makes the test split, instead of test arrays.
        layout: The axes of the images; auto finds them by the channel axis of length 1 or 3, the last axis first.
        class_names: Names in the order of the labels; the numbers where not given.

    Raises DataError naming every array that is missing or of a wrong type, shape or range.
    """
    wanted = [train_images, train_labels, *((test_images, test_labels) if test_fraction is None else ())]
    source = locate(data_root, path, f"a .npz file with the arrays {', '.join(wanted)}")
    identity = {
        "file": file_identity(source),
        "arrays": wanted,
        "test_fraction": test_fraction,
        "layout": layout,
        "class_names": class_names,
    }

    def decode(writer: ImageWriter) -> Labelling:
        problems = Problems()
        with _opened(source) as file:
            for name in wanted:
                if name not in file.files:
                    instead = ", or no test arrays but `test_fraction`" if name in wanted[2:] else ""
                    problems.add(f"{source}: {name}", "there is no such array", ", ".join(file.files) + instead)
            problems.raise_if_any()
            labels = [
                _split(file, source, names, layout, writer, problems)
                for names in zip(wanted[::2], wanted[1::2], strict=True)
            ]
        problems.raise_if_any()
        every = np.concatenate(labels)
        is_test = np.arange(len(every)) >= len(labels[0])
        if test_fraction is not None:
            is_test = carve_test(every, test_fraction)
        return Labelling(names_or_numbers(class_names, every), every, is_test)

    return cached(source.name, cache, identity, decode)


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
    names: tuple[str, str],
    layout: str,
    writer: ImageWriter,
    problems: Problems,
) -> np.ndarray:
    """Write one split's images and return its labels, int64 [N]."""
    before = problems.count
    images = as_channels_first(_array(file, source, names[0]), layout, f"{source}: {names[0]}", problems)
    labels = check_labels(_array(file, source, names[1]), len(images), f"{source}: {names[1]}", problems)
    if writer.shape not in (None, images.shape[1:]):
        problems.add(
            f"{source}: {names[0]}",
            f"images are {list(images.shape[1:])}, the training images {list(writer.shape or ())}",
        )
    if problems.count == before:
        writer.extend(images)
    return labels
