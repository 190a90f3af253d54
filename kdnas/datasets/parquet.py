"""Parquet files with an image and a label column, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.datasets._cache import ImageWriter, Samples, cached
from kdnas.datasets._inputs import (
    Problems,
    Size,
    TestFraction,
    carve_test,
    decode_image,
    file_identity,
    height_width,
    locate,
    missing,
    names_or_numbers,
)
from kdnas.errors import DataError, Problem

_PUT = "the .parquet files of an image data set"
_ROWS = 256


@DATASETS.register
def parquet(
    data_root: Path,
    cache: Path,
    *,
    train: str | tuple[str, ...],
    test: str | tuple[str, ...] | None = None,
    test_fraction: TestFraction | None = None,
    image_column: str = "image",
    label_column: str = "label",
    size: Size | None = None,
    grayscale: bool = False,
    class_names: tuple[str, ...] | None = None,
) -> ImageData:
    """Parquet files with an image column (encoded bytes, or a struct with `bytes`) and a label column.

    Needs pyarrow (`pip install "kdnas[parquet]"`). Labels are integers from 0, or texts, which are sorted. Class names
    come from `class_names`, else from the Hugging Face metadata in the file, else they are the texts or numbers.

    Args:
        data_root: The folder that the files are relative to.
        cache: kdnas's cache folder.
        train: File or glob, or several, with the training images.
        test: The same for the test images.
        test_fraction: Share of every class of `train` that makes the test split; give this or `test`.
        image_column: Name of the image column.
        label_column: Name of the label column.
        size: Resize every image to a square of this side, or to (height, width).
        grayscale: One channel instead of three.
        class_names: Names in the order of the labels.

    Raises DataError naming every missing column, unreadable image and empty label.
    """
    if (test is None) == (test_fraction is None):
        raise DataError("parquet: give either `test` or `test_fraction`")
    files = [_files(data_root, train), _files(data_root, test) if test is not None else []]
    identity = {
        "files": [[file_identity(file) for file in split] for split in files],
        "columns": [image_column, label_column],
        "size": height_width(size),
        "grayscale": grayscale,
        "test_fraction": test_fraction,
        "class_names": class_names,
    }

    def decode(writer: ImageWriter) -> Samples:
        raw, splits, names = _read(files, image_column, label_column, writer, height_width(size), grayscale)
        labels, names = _numbered(raw, class_names or names, label_column)
        is_test = np.array(splits, dtype=bool) if test_fraction is None else carve_test(labels, test_fraction)
        return Samples(names, labels, is_test)

    return cached(files[0][0].parent.name or "parquet", cache, identity, decode)


def _files(data_root: Path, patterns: str | tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if glob.has_magic(pattern) and not (data_root / pattern).exists():  # a file may be called `train[1].parquet`
            root = Path(glob.escape(str(data_root)))
            matches = sorted(glob.glob(str(root / pattern), recursive=True))  # noqa: PTH207 - absolute patterns too
            if not matches:
                raise missing((data_root / pattern).absolute(), data_root, _PUT)
            found.extend(Path(match).absolute() for match in matches)
        else:
            found.append(locate(data_root, pattern, _PUT))
    return found


def _read(
    files: list[list[Path]],
    image_column: str,
    label_column: str,
    writer: ImageWriter,
    size: tuple[int, int] | None,
    grayscale: bool,
) -> tuple[list[Any], list[bool], tuple[str, ...] | None]:
    """Write every image; return the raw labels, which are test ones, and the class names that the files tell."""
    labels: list[Any] = []
    splits: list[bool] = []
    names: tuple[str, ...] | None = None
    problems = Problems()
    for is_test, split in enumerate(files):
        for path in split:
            for row, (cell, label, told) in enumerate(_rows(path, image_column, label_column, problems)):
                names = names or told
                where = f"{path}: row {row}"
                try:
                    image = decode_image(_encoded(cell), size, grayscale)
                except ValueError as error:
                    problems.add(where, str(error))
                    continue
                if label is None or not isinstance(label, int | str) or isinstance(label, bool):
                    problems.add(where, f"its label is {label!r}", "an integer or a text")
                elif writer.shape in (None, image.shape):
                    writer.append(image)
                    labels.append(label)
                    splits.append(bool(is_test))
                else:
                    assert writer.shape is not None
                    what = f"is {image.shape[2]}x{image.shape[1]} pixels, others {writer.shape[2]}x{writer.shape[1]}"
                    problems.add(where, what, "one size, or the option `size` to resize")
    problems.raise_if_any()
    return labels, splits, names


def _rows(
    path: Path, image_column: str, label_column: str, problems: Problems
) -> Iterator[tuple[Any, Any, tuple[str, ...] | None]]:
    """Yield (image cell, label, class names told by the file) row by row, a few hundred rows in memory."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError('reading parquet files needs pyarrow: pip install "kdnas[parquet]"') from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            absent = [name for name in (image_column, label_column) if name not in file.schema_arrow.names]
            for name in absent:
                problems.add(str(path), f"has no column {name!r}", ", ".join(file.schema_arrow.names))
            if absent:
                return
            told = _told_names(file.schema_arrow.metadata or {}, label_column)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[image_column, label_column]):
                columns = batch.to_pydict()
                for cell, label in zip(columns[image_column], columns[label_column], strict=True):
                    yield cell, label, told
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(Problem(str(path), f"is not a parquet file or is damaged: {error}")) from error


def _encoded(cell: Any) -> bytes:
    """Return the encoded image in a cell. Raises ValueError."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise ValueError("holds no image bytes (allowed: encoded bytes, or a struct with a field `bytes`)")
    return content


def _told_names(metadata: dict[bytes, bytes], label_column: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face's metadata give for the label column."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _numbered(raw: list[Any], names: tuple[str, ...] | None, label_column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as int64 [N] and the class names."""
    if all(isinstance(label, int) for label in raw):
        labels = np.array(raw, dtype=np.int64)
        return labels, names_or_numbers(names, labels)
    if not all(isinstance(label, str) for label in raw):
        raise DataError(Problem(f"column {label_column!r}", "mixes numbers and texts", "one of the two"))
    names = names or tuple(sorted(set(raw)))
    unknown = sorted(set(raw) - set(names))
    if unknown:
        raise DataError(
            Problem(f"column {label_column!r}", f"labels {', '.join(unknown[:10])} are no class", ", ".join(names))
        )
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of[label] for label in raw], dtype=np.int64), names
