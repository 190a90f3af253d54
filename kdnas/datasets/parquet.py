"""Parquet files with an image and a label column, as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdnas.core.data import ImageData
from kdnas.core.words import escaped
from kdnas.datasets import DATASETS
from kdnas.datasets._cache import ImageWriter, Labelling, cached
from kdnas.datasets._inputs import (
    Problems,
    Size,
    TestFraction,
    carve_test,
    file_identity,
    locate,
    missing,
    names_or_numbers,
)
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
        class_names: The names in the order of the classes. Names that the files tell are matched by name; where none of
            theirs is among these, these replace them in their order.

    Raises DataError naming every missing column, unreadable image and empty label, and files whose integers cannot be
    told to mean the same classes.
    """
    if (test is None) == (test_fraction is None):
        raise DataError("parquet: give either `test` or `test_fraction`")
    files = [_files(data_root, train), _files(data_root, test) if test is not None else []]
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
        labels, names, notes = _numbered(rows, class_names, label_column)
        is_test = np.array(rows.is_test, dtype=bool) if test_fraction is None else carve_test(labels, test_fraction)
        return Labelling(names, labels, is_test, None, (*notes, *reader.notes(rows.conversions)))

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


@dataclass
class _Rows:
    """What the rows say beside their images, in the order written, and the class names that each file tells."""

    labels: list[Any]
    files: list[Path]
    is_test: list[bool]
    conversions: list[tuple[Conversion, ...]]
    told: dict[Path, tuple[str, ...] | None]


def _read(
    files: list[list[Path]], image_column: str, label_column: str, writer: ImageWriter, reader: PictureReader
) -> _Rows:
    """Write every image and return what the rows say. Raises DataError."""
    rows = _Rows([], [], [], [], {})
    problems = Problems()
    for is_test, split in enumerate(files):
        for path in split:
            for row, (cell, label) in enumerate(_cells(path, image_column, label_column, rows.told, problems)):
                where = f"{path}: row {row}"
                try:
                    picture = reader.read(*_encoded(cell))
                except ValueError as error:
                    problems.add(where, str(error))
                    continue
                shape, own = writer.shape, picture.pixels.shape
                wrong = _label_mistake(label, rows.told[path])
                if wrong:
                    problems.add(where, *wrong)
                elif shape in (None, own):
                    writer.append(picture.pixels)
                    rows.labels.append(label)
                    rows.files.append(path)
                    rows.is_test.append(bool(is_test))
                    rows.conversions.append(picture.conversions)
                else:
                    assert shape is not None
                    what = f"is {own[2]}x{own[1]} pixels, others {shape[2]}x{shape[1]}"
                    problems.add(where, what, "one size, or the option `size` to resize")
    problems.raise_if_any()
    return rows


def _label_mistake(label: Any, told: Sequence[str] | None) -> tuple[str, str] | None:
    """Return (what is wrong with a label, what is allowed); None where nothing is. `told` names its file's classes."""
    if label is None or not isinstance(label, int | str) or isinstance(label, bool):
        return f"its label is {label!r}", "an integer or a text"
    if told is None or isinstance(label, str) or 0 <= label < len(told):
        return None
    withheld = ", which stands for a label that is withheld" if label == -1 else ""
    return f"its label is {label}{withheld}; labels out of range", f"0 to {len(told) - 1}, the file's class names"


def _cells(
    path: Path, image_column: str, label_column: str, told: dict[Path, tuple[str, ...] | None], problems: Problems
) -> Iterator[tuple[Any, Any]]:
    """Yield (image cell, label) row by row, a few hundred rows in memory; notes the class names told by the file."""
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
            told[path] = _told_names(file.schema_arrow.metadata or {}, label_column)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[image_column, label_column]):
                columns = batch.to_pydict()
                yield from zip(columns[image_column], columns[label_column], strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(Problem(str(path), f"is not a parquet file or is damaged: {error}")) from error


def _encoded(cell: Any) -> tuple[bytes, str]:
    """Return the encoded image in a cell and its file's name, as far as the cell tells it. Raises ValueError."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    path = cell.get("path") if isinstance(cell, dict) else None
    if not isinstance(content, bytes):
        instead = f" but the path {path!r}: embed the files when writing it" if isinstance(path, str) else ""
        raise ValueError(f"holds no image bytes{instead} (allowed: encoded bytes, or a struct with a field `bytes`)")
    return content, path if isinstance(path, str) else ""


def _told_names(metadata: dict[bytes, bytes], label_column: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face's metadata give for the label column."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict) and {str(label) for label in range(len(names))} == names.keys():
        names = [names[str(label)] for label in range(len(names))]
    return tuple(map(str, names)) if isinstance(names, list) else None


def _numbered(
    rows: _Rows, class_names: tuple[str, ...] | None, label_column: str
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return labels as int64 [N], the class names, and notes. Raises DataError."""
    where = f"column {label_column!r}"
    tellers = {path: names for path, names in rows.told.items() if names is not None}
    if not tellers:
        return *_untold(rows.labels, class_names, where), []
    for label, path in zip(rows.labels, rows.files, strict=True):
        if isinstance(label, int) and path not in tellers:
            what = f"its labels are integers without class names, while {next(iter(tellers))} names its classes"
            raise DataError(Problem(str(path), what, "the same Hugging Face metadata in every file"))
    for path, names in tellers.items():
        doubles = [name for name, count in Counter(names).items() if count > 1]
        if doubles:
            raise DataError(Problem(str(path), f"its class names occur twice: {', '.join(doubles[:10])}"))
    every = tuple(dict.fromkeys(name for names in tellers.values() for name in names))
    differ = len(set(tellers.values())) > 1
    texts = [
        label if isinstance(label, str) else tellers[path][label]
        for label, path in zip(rows.labels, rows.files, strict=True)
    ]
    notes = ["its files number the classes differently: labels are matched by their names"] if differ else []
    if class_names is None or set(class_names) & set(every):
        names = class_names or every
        return _by_name(texts, names, where), names, notes
    if differ:
        what = "the files number their classes differently, and none of `class_names` is a name of theirs"
        raise DataError(Problem(where, what, ", ".join(every)))
    if len(class_names) != len(every):
        what = f"{len(class_names)} names for {len(every)} classes"
        raise DataError(Problem("class_names", what, ", ".join(every)))
    return _by_name(texts, every, where), class_names, notes


def _untold(raw: list[Any], class_names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as int64 [N] and the class names, where no file tells names."""
    if all(isinstance(label, int) for label in raw):
        labels = np.array(raw, dtype=np.int64)
        return labels, names_or_numbers(class_names, labels)
    if not all(isinstance(label, str) for label in raw):
        raise DataError(Problem(where, "mixes numbers and texts", "one of the two"))
    names = class_names or tuple(sorted(set(raw)))
    return _by_name(raw, names, where), names


def _by_name(texts: Sequence[str], names: Sequence[str], where: str) -> np.ndarray:
    """Return the place of every text among `names`, int64 [N]. Raises DataError naming those that are none."""
    unknown = sorted(set(texts) - set(names))
    if unknown:
        what = escaped(f"labels {', '.join(unknown[:10])} are no class")
        raise DataError(Problem(where, what, escaped(", ".join(names))))
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of[text] for text in texts], dtype=np.int64)
