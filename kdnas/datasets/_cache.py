"""Decoded once: every data set becomes a folder of plain arrays that are memory-mapped ever after.

    <cache>/datasets/<key>/images.npy   uint8 [N, C, H, W], the training images first, then the test images
                           labels.npy   int64 [N]
                           meta.json    names, counts, channel statistics, fingerprint, notes

The key is a hash of where the data came from and how it was read. An entry is written in a temporary folder beside its
place and renamed when it is whole: readers never see half of one, an interrupted decoding leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from kdnas.core.data import ImageData, Samples
from kdnas.core.words import escaped
from kdnas.datasets._content import check_scales, content_notes
from kdnas.datasets._inputs import class_name_problems
from kdnas.errors import DataError, Problem

try:
    import fcntl
except ImportError:  # no POSIX locks: processes may then decode the same data side by side, the first one done wins
    fcntl = None  # type: ignore[assignment]

_FORMAT = 3
_CHUNK_BYTES = 16 << 20
_HEADER_BYTES = 128


@dataclass(frozen=True)
class Labelling:
    """What a source tells of the images that it wrote, in the order written.

    `labels` is int64 [N] in [0, K); `is_test` bool [N]; `keep` int64 [M] picks and orders the samples that belong
    to the data set (None: all, as written). `notes` say what was converted or left out.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    is_test: np.ndarray
    keep: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class ImageWriter:
    """Appends equally shaped images to one .npy file whose length is not known before the end."""

    def __init__(self, path: Path):
        self._file: BinaryIO = path.open("wb", buffering=1 << 20)
        self._file.write(bytes(_HEADER_BYTES))
        self.shape: tuple[int, int, int] | None = None
        """(C, H, W) of the first image; None before it."""
        self.count = 0

    def append(self, image: np.ndarray) -> None:
        """Append one uint8 image [C, H, W]. Raises ValueError where its shape or type is not that of the first."""
        self.extend(image[np.newaxis])

    def extend(self, images: np.ndarray) -> None:
        """Append uint8 images [n, C, H, W]. Raises ValueError where their shape or type is not that of the first."""
        if images.ndim != 4 or images.dtype != np.uint8 or self.shape not in (None, images.shape[1:]):
            raise ValueError(f"{images.dtype} {images.shape} cannot follow uint8 {self.shape}")
        self.shape = images.shape[1:]
        rows = max(1, _CHUNK_BYTES // max(1, images[0:1].nbytes))
        for start in range(0, len(images), rows):
            self._file.write(np.ascontiguousarray(images[start : start + rows]).data)
        self.count += len(images)

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            # The .npy format 1.0 header: magic, version, length, then a literal padded to a multiple of 64 bytes.
            shape = (self.count, *(self.shape or (0, 0, 0)))
            text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
            length = _HEADER_BYTES - 10
            header = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"
            self._file.seek(0)
            self._file.write(header)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()


def cached(
    name: str, cache: Path, identity: Mapping[str, Any], decode: Callable[[ImageWriter], Labelling]
) -> ImageData:
    """Return the data set that `identity` names from the cache, decoding it first where it is not there.

    Args:
        name: The source's name, shown to the user.
        cache: kdnas's cache folder; made where it is missing.
        identity: Everything that decides the decoded arrays, JSON-serialisable: the files and the options.
        decode: Appends every image to the writer and returns what they are. Raises DataError.

    Raises DataError: from `decode`; where the samples are unusable; where the cache cannot be written.
    """
    key = _key({"format": _FORMAT, "name": name, "identity": identity})
    folder = cache / "datasets" / key
    data = _open(folder)
    if data is not None:
        return data
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _decoding_lock(folder.parent / f"{key}.lock", name) as alone:
            data = _open(folder)
            if data is None:
                if alone:  # what a killed process left
                    for left in folder.parent.glob(f".{key}-*"):
                        shutil.rmtree(left, ignore_errors=True)
                _decode(name, folder, decode)
                data = _open(folder)
    except OSError as error:
        reason = f"cannot keep the decoded data here: {error.strerror or error}"
        raise DataError(
            Problem(str(cache), reason, "free space in a writable folder; KDNAS_CACHE names another")
        ) from error
    if data is None:
        raise DataError(Problem(str(folder), "the decoded data vanished while it was being opened"))
    return data


def kept_data(cache: Path, fingerprint: str) -> ImageData | None:
    """Return the data set of this content from the cache, whatever it was read from; None where it is not there."""
    for path in sorted((cache / "datasets").glob("*/meta.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # an entry of an older form, or damaged
            if json.loads(path.read_text())["fingerprint"] == fingerprint and (data := _open(path.parent)) is not None:
                return data
    return None


def _decode(name: str, folder: Path, decode: Callable[[ImageWriter], Labelling]) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with ImageWriter(work / "images.npy") as writer:
            samples = decode(writer)
        _check(name, samples, writer.count)
        train_count, labels = _arrange(work, samples)
        images = np.load(work / "images.npy", mmap_mode="r")
        check_scales(name, images, train_count)
        mean, std = channel_statistics(images[:train_count])
        meta = {
            "name": name,
            "class_names": list(samples.class_names),
            "train_count": train_count,
            "fingerprint": fingerprint(images, labels, samples.class_names, train_count),
            "channel_mean": mean,
            "channel_std": std,
            "notes": [*samples.notes, *content_notes(images, labels, samples.class_names, train_count)],
        }
        del images
        np.save(work / "labels.npy", labels)
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
        work.chmod(0o755)
        if folder.exists() and _open(folder) is None:  # a damaged entry makes room
            shutil.rmtree(folder)
        try:
            work.replace(folder)
        except OSError:  # without locks another process may have been first; its entry has the same content
            if _open(folder) is None:
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _arrange(work: Path, samples: Labelling) -> tuple[int, np.ndarray]:
    """Put the training images first and drop what is not kept; return (training images, labels in that order)."""
    keep = samples.keep if samples.keep is not None else np.arange(len(samples.labels))
    is_test = samples.is_test[keep]
    order = np.concatenate([keep[~is_test], keep[is_test]])
    if not np.array_equal(order, np.arange(len(samples.labels))):
        written = np.load(work / "images.npy", mmap_mode="r")
        rows = max(1, _CHUNK_BYTES // written[0].nbytes)
        with ImageWriter(work / "arranged.npy") as writer:
            for start in range(0, len(order), rows):
                writer.extend(written[order[start : start + rows]])
        del written
        (work / "arranged.npy").replace(work / "images.npy")
    return int((~is_test).sum()), samples.labels[order].astype(np.int64)


def _check(name: str, samples: Labelling, written: int) -> None:
    """Check that samples make a data set: raises DataError with every problem found."""
    problems: list[Problem] = []
    names, labels, is_test = samples.class_names, samples.labels, samples.is_test
    if not len(labels) == len(is_test) == written:
        raise DataError(Problem(name, f"{written} images but {len(labels)} labels"))
    if samples.keep is not None:
        labels, is_test = labels[samples.keep], is_test[samples.keep]
    if len(names) < 2:
        only = f" ({names[0]!r})" if names else ""
        problems.append(
            Problem(name, f"there is only one class{only}" if names else "there are no images", "two or more classes")
        )
    problems += class_name_problems(names, name)
    outside = (labels < 0) | (labels >= len(names))
    if outside.any():
        shown = ", ".join(str(label) for label in np.unique(labels[outside])[:5])
        problems.append(
            Problem(f"{name}: labels", f"{int(outside.sum())} are out of range: {shown}", f"0 to {len(names) - 1}")
        )
    elif len(names) >= 2:
        counts = np.bincount(labels[~is_test], minlength=len(names))
        empty = [escaped(one) for one, count in zip(names, counts, strict=True) if count == 0]
        if empty:
            more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
            from_one = labels.min() == 1 and labels.max() == len(names) - 1 and names[0] == "0"
            hint = " (labels that count from 1? They count from 0 here)" if from_one else ""
            problems.append(Problem(f"{name}: train", f"no image of class {', '.join(empty[:10])}{more}{hint}"))
        if not is_test.any():
            problems.append(Problem(f"{name}: test", "there are no test images"))
    if problems:
        raise DataError(problems)


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Return exact (means, deviations) per channel of uint8 images [N, C, H, W]; a zero deviation becomes 1.0."""
    channels = images.shape[1]
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for chunk in _chunks(images):
        for channel in range(channels):
            histogram[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    values = np.arange(256, dtype=np.float64)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, np.newaxis]) ** 2).sum(axis=1))
    return mean.tolist(), np.where(std > 0, std, 1.0).tolist()


def fingerprint(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], train_count: int) -> str:
    """Return the SHA-256 of a data set's content: images, labels, class names and where the test split starts."""
    head = {"shape": list(images.shape), "class_names": list(class_names), "train_count": train_count}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for chunk in _chunks(images):
        digest.update(np.ascontiguousarray(chunk).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _CHUNK_BYTES // max(1, images[0:1].nbytes))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def _open(folder: Path) -> ImageData | None:
    """Return the entry in `folder`; None where there is none or it is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        train = int(meta["train_count"])
        if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1] or train > len(labels):
            return None
        return ImageData(
            name=meta["name"],
            class_names=tuple(meta["class_names"]),
            train=Samples({"pixels": images[:train]}, labels[:train]),
            test=Samples({"pixels": images[train:]}, labels[train:]),
            fingerprint=meta["fingerprint"],
            channel_mean=tuple(meta["channel_mean"]),
            channel_std=tuple(meta["channel_std"]),
            notes=tuple(meta["notes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:20]


@contextlib.contextmanager
def _decoding_lock(path: Path, name: str) -> Iterator[bool]:
    """Hold the lock of one key, waiting for it, which is said; gives whether this process is certainly alone."""
    with path.open("a") as file:
        alone = False
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    print(f"waiting for another process that decodes {name}", file=sys.stderr, flush=True)
                    fcntl.flock(file, fcntl.LOCK_EX)
                alone = True
        yield alone
