"""Parquet files with an image and a label column, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.datasets._cache import ImageWriter, Labelling, cached
from kdnas.datasets._inputs import (
    Problems,
    Size,
    TestFraction,
    carve_test,
    file_identity,
    locate_all,
    name_of,
)
from kdnas.datasets._labels import DeclaredLabels, declared_names, label_mistake, numbered
from kdnas.datasets._pictures import Background, Conversion, PictureReader
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
    background: Background = "white",
    class_names: tuple[str, ...] | None = None,
) -> ImageData:
    """Parquet files with an image column (encoded bytes, or a struct with `bytes`) and a label column.

    Needs pyarrow (`pip install "kdnas[parquet]"`). Labels are texts, which are sorted, or integers. An integer stands
    for the name that its own file's Hugging Face metadata (ClassLabel) give it, so that files may number the classes
    differently; where no file has such metadata, integers count from 0.

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
        background: The colour behind transparent parts: a name such as white, or '#rrggbb'.
        class_names: The names in the order of the classes. Names in the files are matched by name; where none of
            theirs is among these, these replace them in their order.

    Raises DataError naming every missing column, unreadable image and empty label, and files whose integers cannot be
    stated to mean the same classes.
    """
    if (test is None) == (test_fraction is None):
        raise DataError("parquet: give either `test` or `test_fraction`")
    files = [locate_all(data_root, split, _PUT) if split is not None else [] for split in (train, test)]
    reader = PictureReader(size, grayscale, background)
    identity = {
        "files": [[file_identity(file) for file in split] for split in files],
        "columns": [image_column, label_column],
        "pictures": reader.identity,
        "test_fraction": test_fraction,
        "class_names": class_names,
    }

    def decode(writer: ImageWriter) -> Labelling:
        rows = _read(files, image_column, label_column, writer, reader)
        labels, names, notes = numbered(rows.labels, class_names, f"column {label_column!r}")
        is_test = np.array(rows.is_test, dtype=bool) if test_fraction is None else carve_test(labels, test_fraction)
        return Labelling(names, labels, is_test, None, (*notes, *reader.notes(rows.conversions)))

    return cached(name_of(files[0][0], data_root), cache, identity, decode)


@dataclass
class _Rows:
    """The rows' other columns, in the order of their images."""

    labels: DeclaredLabels
    is_test: list[bool]
    conversions: list[tuple[Conversion, ...]]


def _read(
    files: list[list[Path]], image_column: str, label_column: str, writer: ImageWriter, reader: PictureReader
) -> _Rows:
    """Write every image and return the rows' other columns. Raises DataError."""
    rows = _Rows(DeclaredLabels(), [], [])
    problems = Problems()
    for is_test, split in enumerate(files):
        for path in split:
            for row, (cell, label) in enumerate(
                _cells(path, image_column, label_column, rows.labels.declared, problems)
            ):
                where = f"{path}: row {row}"
                try:
                    picture = reader.read(*_encoded(cell))
                except ValueError as error:
                    problems.add(where, str(error))
                    continue
                shape, own = writer.shape, picture.pixels.shape
                wrong = label_mistake(label, rows.labels.declared[path])
                if wrong:
                    problems.add(where, *wrong)
                elif shape in (None, own):
                    writer.append(picture.pixels)
                    rows.labels.append(label, path)
                    rows.is_test.append(bool(is_test))
                    rows.conversions.append(picture.conversions)
                else:
                    assert shape is not None
                    what = f"is {own[2]}x{own[1]} pixels, others {shape[2]}x{shape[1]}"
                    problems.add(where, what, "one size, or the option `size` to resize")
    problems.raise_if_any()
    return rows


def _cells(
    path: Path, image_column: str, label_column: str, declared: dict[Path, tuple[str, ...] | None], problems: Problems
) -> Iterator[tuple[Any, Any]]:
    """Yield (image cell, label) row by row, a few hundred rows in memory; notes the class names in the file."""
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
            declared[path] = declared_names(file.schema_arrow.metadata or {}, label_column)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[image_column, label_column]):
                columns = batch.to_pydict()
                yield from zip(columns[image_column], columns[label_column], strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(Problem(str(path), f"is not a parquet file or is damaged: {error}")) from error


def _encoded(cell: Any) -> tuple[bytes, str]:
    """Return the encoded image in a cell and its file's name, as far as the cell has it. Raises ValueError."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    path = cell.get("path") if isinstance(cell, dict) else None
    if not isinstance(content, bytes):
        instead = f" but the path {path!r}: embed the files when writing it" if isinstance(path, str) else ""
        raise ValueError(f"holds no image bytes{instead} (allowed: encoded bytes, or a struct with a field `bytes`)")
    return content, path if isinstance(path, str) else ""
