"""Decoded once: every data set becomes a folder of plain arrays that are memory-mapped ever after.

    <cache>/datasets/<key>/images.npy   uint8 [N, C, H, W], the training images first, then the test images
                           labels.npy   int64 [N]
                           meta.json    names, counts, channel statistics, fingerprint, notes

The key is a hash of where the data came from and how it was read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from kdnas.core.data import ImageData, Samples
from kdnas.core.words import escaped
from kdnas.datasets._content import check_scales, content_notes
from kdnas.datasets._entries import META, kept_entry
from kdnas.datasets._inputs import class_name_problems
from kdnas.errors import DataError, Problem

_FORMAT = 3
_CHUNK_BYTES = 16 << 20
_HEADER_BYTES = 128


@dataclass(frozen=True)
class Labelling:
    """A source's record of the images that it wrote, in the order written.

    `labels` is int64 [N] in [0, K); `is_test` bool [N]; `keep` int64 [M] picks and orders the samples that belong
    to the data set (None: all, as written). `notes` list what was converted or left out.
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
    identity = {"format": _FORMAT, "name": name, "identity": identity}
    return kept_entry(name, cache, identity, lambda work: _decode(work, name, decode), open_images)


def _decode(work: Path, name: str, decode: Callable[[ImageWriter], Labelling]) -> None:
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
    (work / META).write_text(json.dumps(meta, indent=1))


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


def open_images(folder: Path) -> ImageData | None:
    """Return the entry in `folder`; None where there is none or it is damaged."""
    try:
        meta = json.loads((folder / META).read_text())
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
