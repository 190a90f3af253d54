"""What the sources share: finding files, distinguishing versions of them, checking arrays, collecting problems."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from kdnas.core.data import stratified_split
from kdnas.core.seeds import derive_seed
from kdnas.core.task import UNLABELLED
from kdnas.core.words import data_root_in_words, escaped
from kdnas.errors import DataError, Problem
from kdnas.regular import regular

Pixels = Annotated[int, Field(ge=1, le=4096)]
Size = Pixels | tuple[Pixels, Pixels]
"""A side in pixels, or (height, width)."""
TestFraction = Annotated[float, Field(gt=0.0, lt=1.0)]

_SHOWN = 10
_HASHED_BYTES = 1 << 20
_SAMPLES = 64
_SAMPLED_BYTES = 4096


class Problems:
    """Collects what is wrong with the data, keeping the first ten and counting the rest."""

    def __init__(self) -> None:
        self.shown: list[Problem] = []
        self.count = 0

    def add(self, where: str, what: str, allowed: str = "") -> None:
        """Add one problem."""
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(Problem(where, what, allowed))

    def raise_if_any(self) -> None:
        """Raise DataError with everything collected, if anything was."""
        if self.count > len(self.shown):
            raise DataError([*self.shown, Problem("", f"and {self.count - len(self.shown)} more problems like these")])
        if self.shown:
            raise DataError(self.shown)


def name_of(file: Path, data_root: Path) -> str:
    """Return what data that begin with `file` are called: as its folder, or as it is where that is the data root."""
    return file.name if file.parent == data_root.absolute() else file.parent.name or file.name


def locate(data_root: Path, path: str, put_there: str) -> Path:
    """Return the full path of the user's `path`, relative to the data root. Raises DataError where nothing is there."""
    full = Path(os.path.abspath(data_root / Path(path).expanduser()))  # noqa: PTH100 - links stay as they were written
    if not full.exists():
        raise missing(full, data_root, put_there)
    try:
        return regular(full)
    except OSError as error:
        raise DataError(Problem(str(full), error.strerror or str(error), put_there)) from None


def locate_all(data_root: Path, patterns: str | Sequence[str], put_there: str) -> list[Path]:
    """Return the full paths of the user's files and globs, relative to the data root. Raises DataError as `locate`."""
    found: list[Path] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if glob.has_magic(pattern) and not (data_root / pattern).exists():  # a file may be called `train[1].parquet`
            root = Path(glob.escape(str(data_root)))
            matches = sorted(glob.glob(str(root / pattern), recursive=True))  # noqa: PTH207 - absolute patterns too
            if not matches:
                raise missing((data_root / pattern).absolute(), data_root, put_there)
            found.extend(locate(data_root, match, put_there) for match in matches)
        else:
            found.append(locate(data_root, pattern, put_there))
    return found


def missing(full: Path, data_root: Path, put_there: str) -> DataError:
    """Return the error for data that is not there: where it was looked for, how to change that, what to put there."""
    return DataError(
        Problem(
            str(full),
            f"there is no such file or folder; put there {put_there}. {data_root_in_words(data_root)}",
        )
    )


def file_identity(path: Path) -> dict[str, Any]:
    """Return what differs between versions of a file: its content where small, else stamps and samples of it.

    A file that was replaced by one of the same size and time of modification has another inode or time of change; where
    a file system keeps neither, the samples detect most replacements. Raises DataError where it cannot be opened.
    """
    try:
        status = path.stat()
        with path.open("rb") as file:
            if status.st_size <= _HASHED_BYTES:
                return {"sha256": hashlib.sha256(file.read()).hexdigest()}
            samples = hashlib.sha256()
            for start in range(0, status.st_size, max(status.st_size // _SAMPLES, _SAMPLED_BYTES)):
                file.seek(start)
                samples.update(file.read(_SAMPLED_BYTES))
            file.seek(status.st_size - _SAMPLED_BYTES)
            samples.update(file.read(_SAMPLED_BYTES))
    except OSError as error:
        raise DataError(Problem(str(path), f"cannot be read: {error.strerror}")) from error
    return {"path": str(path), "stamp": stamp(status), "samples": samples.hexdigest()}


def stamp(status: os.stat_result) -> list[int]:
    """Return what changes whenever a file's content is changed or replaced: size, both times, inode."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def class_name_problems(names: Sequence[str], where: str) -> list[Problem]:
    """Return what keeps `names` from being written into a file: what is no text, blank ones, and doubles."""
    broken = [name for name in names if not _is_text(name)]
    problems = [
        Problem(escaped(f"{where}: class {name}"), "its name is no text in UTF-8", "UTF-8, as `convmv` makes it")
        for name in broken[:_SHOWN]
    ]
    if len(broken) > _SHOWN:
        problems.append(Problem(where, f"and {len(broken) - _SHOWN} more class names are no UTF-8 text"))
    if any(not name.strip() for name in names):
        problems.append(Problem(f"{where}: class names", "one is blank"))
    if len(set(names)) < len(names):
        problems.append(Problem(f"{where}: class names", "some occur twice"))
    return problems


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def height_width(size: Size | None) -> tuple[int, int] | None:
    """Return `size` as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def carve_test(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return bool [N]: which samples make the test split, `fraction` of every class, always the same ones."""
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[stratified_split(labels, fraction, derive_seed(0, "test split"))[1]] = True
    return is_test


def names_or_numbers(class_names: Sequence[str] | None, labels: np.ndarray) -> tuple[str, ...]:
    """Return the class names; where none are given, the numbers from 0 to the largest of `labels`."""
    if class_names is not None:
        return tuple(class_names)
    return tuple(str(label) for label in range(int(labels.max()) + 1)) if len(labels) else ()


def with_missing(labels: np.ndarray, missing_label: int | None) -> np.ndarray:
    """Return labels with `UNLABELLED` where `missing_label` stands; None: as they are."""
    return labels if missing_label is None else np.where(labels == missing_label, UNLABELLED, labels)


def check_labels(labels: np.ndarray, count: int, where: str, problems: Problems) -> np.ndarray:
    """Return labels as int64 [N]; adds to `problems` what is wrong. A trailing axis of one is dropped."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        rows = labels.ndim == 2 and labels.size and labels.dtype.kind in "fiub"
        one_hot = rows and ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
        hint = "; one-hot rows become them by `.argmax(1)`" if one_hot else ""
        problems.add(where, f"labels are {labels.dtype} {list(labels.shape)}", f"integers [N]{hint}")
        return np.zeros(count, dtype=np.int64)
    if len(labels) != count:
        problems.add(where, f"{len(labels)} labels for {count} images")
    return labels.astype(np.int64)


def as_channels_first(images: np.ndarray, layout: str, where: str, problems: Problems) -> np.ndarray:
    """Return uint8 images as a view [N, C, H, W]; adds to `problems` what is wrong.

    `layout` is NCHW, NHWC, NHW, or auto: three axes are NHW; of four, the axis of length 1 or 3 holds the channels,
    where the last axis comes before the second.
    """
    if images.dtype != np.uint8:
        problems.add(where, f"images are {images.dtype}", f"uint8, 0 to 255{_scale_hint(images)}")
        return np.zeros((len(images) if images.ndim else 0, 1, 1, 1), dtype=np.uint8)
    if layout == "auto":
        layout = _detect_layout(images.shape)
    if images.ndim != len(layout) or layout == "unknown":
        problems.add(
            where, f"images have the shape {list(images.shape)}", "[N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3"
        )
        return np.zeros((len(images) if images.ndim else 0, 1, 1, 1), dtype=np.uint8)
    if layout == "NHW":
        return images[:, np.newaxis]
    return images.transpose(0, 3, 1, 2) if layout == "NHWC" else images


def _scale_hint(images: np.ndarray) -> str:
    """Return how images of another type become bytes, as far as their values show it."""
    if images.dtype.kind not in "fiub" or not images.size:
        return ""
    if not np.isfinite(images).all():
        return "; some values are not finite"
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 65535:
        return f"; these reach from {low:g} to {high:g}: undo their normalisation first"
    if high <= 1:
        return "; these are in 0..1: `(255 * images).round().astype('uint8')`"
    return "; `.astype('uint8')` keeps these" if high <= 255 else f"; these reach {high:g}: divide by 257"


def _detect_layout(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        return "unknown"
    if shape[3] in (1, 3):
        return "NHWC"
    return "NCHW" if shape[1] in (1, 3) else "unknown"
