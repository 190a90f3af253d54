"""The CIFAR-10 and CIFAR-100 "python version" archives (Krizhevsky, technical report, 2009)."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.datasets._archives import is_archive, members
from kdnas.datasets._cache import ImageWriter, Labelling, cached
from kdnas.datasets._inputs import Problems, file_identity, locate
from kdnas.errors import DataError, Problem

_TRAIN = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "train")
_META = ("batches.meta", "meta")
_FILES = (*_TRAIN, "test_batch", "test", *_META)
_MAX_FILE_BYTES = 1 << 30
_PUT = "cifar-10-python.tar.gz or cifar-100-python.tar.gz, or the folder inside, from the data set's home page"


@DATASETS.register
def cifar_archive(data_root: Path, cache: Path, *, path: str, labels: Literal["fine", "coarse"] = "fine") -> ImageData:
    """CIFAR-10 or CIFAR-100 as the "python version" archive, or the folder inside it: 32x32 RGB.

    The files are pickles, read by an unpickler that builds numpy arrays and plain values and refuses all else.

    Args:
        data_root: The folder that `path` is relative to.
        cache: kdnas's cache folder.
        path: The .tar.gz (or another archive of the same files), or the extracted folder.
        labels: CIFAR-100's 100 fine classes or its 20 coarse ones.

    Raises DataError on files that are missing, cut short, or not what CIFAR consists of.
    """
    source = locate(data_root, path, _PUT)
    if source.is_file() and not is_archive(source):
        raise DataError(Problem(str(source), "is neither a folder nor an archive"))
    files = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.name in _FILES)
    identity = {"files": [[file.name, file_identity(file)] for file in files], "labels": labels}

    def decode(writer: ImageWriter) -> Labelling:
        return _decode(_contents(source, files), source, writer, labels)

    return cached(source.name, cache, identity, decode)


def _contents(source: Path, files: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of the files that CIFAR consists of."""
    if source.is_dir():
        for file in files:
            yield file.name, file.read_bytes()
        return
    for member in members(source, _MAX_FILE_BYTES):
        if member.parts and not member.is_folder and member.parts[-1] in _FILES:
            yield member.parts[-1], member.read()


def _decode(
    contents: Iterator[tuple[str, bytes]], source: Path, writer: ImageWriter, labels: Literal["fine", "coarse"]
) -> Labelling:
    problems = Problems()
    names: list[str] | None = None
    parts: dict[str, tuple[int, np.ndarray]] = {}
    for name, content in contents:
        where = f"{source}: {name}"
        try:
            record = _load(content)
        except ValueError as error:
            problems.add(where, str(error))
            continue
        if name in _META:
            names = record.get(f"{labels}_label_names", record.get("label_names"))
            continue
        images, given = record.get("data"), record.get(f"{labels}_labels", record.get("labels"))
        what = _mistake(images, given)
        if what or images is None:
            problems.add(where, what)
            continue
        parts[name] = (writer.count, np.array(given, dtype=np.int64))
        writer.extend(images.reshape(-1, 3, 32, 32))
    wanted = ["train", "test"] if "train" in parts or "test" in parts else [*_TRAIN[:5], "test_batch"]
    if not problems.count:
        for name in wanted:
            if name not in parts:
                problems.add(str(source), f"holds no {name}", _PUT)
    problems.raise_if_any()
    starts = [np.arange(parts[name][0], parts[name][0] + len(parts[name][1])) for name in wanted]
    keep = np.concatenate(starts)
    by_row = np.zeros(writer.count, dtype=np.int64)
    is_test = np.zeros(writer.count, dtype=bool)
    for name, rows in zip(wanted, starts, strict=True):
        by_row[rows] = parts[name][1]
        is_test[rows] = name not in _TRAIN
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        names = [str(label) for label in range(int(by_row.max(initial=-1)) + 1)]
    return Labelling(tuple(names), by_row, is_test, keep)


def _mistake(images: Any, labels: Any) -> str:
    """Return what is wrong with one batch, empty when nothing is."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        found = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        return f"its data is {found}, not uint8 [N, 3072]"
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        return "its labels are not a list of integers"
    return "" if len(labels) == len(images) else f"{len(labels)} labels for {len(images)} images"


def _load(content: bytes) -> dict[str, Any]:
    """Return the dictionary in a CIFAR pickle. Raises ValueError on anything that is not plain data."""
    try:
        record = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # a damaged pickle fails in any way at all
        raise ValueError(f"is damaged or cut short: {type(error).__name__}: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"holds a {type(record).__name__}, not a dictionary")
    return record


class _RefusedError(pickle.UnpicklingError):
    pass


class _PlainUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain values; any other name in the pickle is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise _RefusedError(f"refused: the pickle asks for {module}.{name}, which no CIFAR file needs")
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("refused: the pickle refers to something outside itself")


def _new_array(subtype: Any, shape: Any, dtype: Any) -> np.ndarray:
    """Stand in for numpy's `_reconstruct`, which always makes an empty array for its state to fill."""
    return np.empty(0, dtype=np.uint8)


def _latin1(text: Any, encoding: Any) -> bytes:
    """Stand in for `codecs.encode`, by which Python 3 writes bytes in old pickle protocols."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("refused: the pickle asks for a text encoding that no CIFAR file needs")
    return text.encode("latin1")


def _plain_dtype(*arguments: Any) -> np.dtype:
    if arguments[:1] not in (("u1",), ("|u1",), ("b1",), ("i8",), ("<i8",), ("i4",), ("<i4",)):
        raise _RefusedError(f"refused: the pickle holds an array of type {arguments[:1]}, which no CIFAR file needs")
    return np.dtype(arguments[0])


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument; a string cannot be called
    ("numpy", "dtype"): _plain_dtype,
    ("_codecs", "encode"): _latin1,
}
