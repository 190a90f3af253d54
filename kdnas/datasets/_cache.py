"""Decoded once: every data set becomes a folder of plain arrays that are memory-mapped ever after.

    <cache>/datasets/<key>/images.npy   uint8 [N, C, H, W], the training images first, then the test images
                           labels.npy   int64 [N]
                           keys.npy     text [N], where the source has keys
                           meta.json    names, counts, channel statistics, fingerprint, notes

The key is a hash of where the data came from and how it was read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from kdnas.core.data import ImageData, Samples
from kdnas.core.task import UNLABELLED, Head
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

    `labels` is int64 [N] in [0, K), or where they are known `partly` also -1; `is_test` bool [N]; `keep` int64 [M]
    picks and orders the samples that belong to the data set (None: all, as written). `notes` list what was converted or
    left out. With `heads` of several tasks `labels` is [N, P], each from 0, and `class_names` has the names of all
    (`class_of`).
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    is_test: np.ndarray
    keep: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    heads: tuple[Head, ...] = ()
    partly: bool = False
    keys: Sequence[str] | np.ndarray | None = None
    """What tells each image from all others, in the order written; None where nothing does."""

    def questions(self, labels: np.ndarray) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """Return the class names of each task, and its column of `labels` [N, ...]."""
        columns = [(self.class_names[head.places], labels[:, place]) for place, head in enumerate(self.heads)]
        return columns or [(self.class_names, labels)]


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
    identity = {"format": _FORMAT, "identity": identity}
    return kept_entry(name, cache, identity, lambda work: _decode(work, name, decode), open_images)


def _decode(work: Path, name: str, decode: Callable[[ImageWriter], Labelling]) -> None:
    with ImageWriter(work / "images.npy") as writer:
        samples = decode(writer)
    _check(name, samples, writer.count)
    train_count, order = _arrange(work, samples)
    labels = samples.labels[order].astype(np.int64)
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
        "notes": [*samples.notes, *content_notes(images, labels, samples.questions(labels[train_count:]), train_count)],
        **({"heads": [[head.name, head.outputs] for head in samples.heads]} if samples.heads else {}),
    }
    del images
    np.save(work / "labels.npy", labels)
    if samples.keys is not None:
        np.save(work / "keys.npy", np.asarray(samples.keys)[order].astype(str))
    (work / META).write_text(json.dumps(meta, indent=1))


def _arrange(work: Path, samples: Labelling) -> tuple[int, np.ndarray]:
    """Put the training images first and drop what is not kept; return (training images, which image stands where)."""
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
    return int((~is_test).sum()), order


def _check(name: str, samples: Labelling, written: int) -> None:
    """Check that samples make a data set: raises DataError with every problem found."""
    problems: list[Problem] = []
    names, labels, is_test = samples.class_names, samples.labels, samples.is_test
    if not len(labels) == len(is_test) == written:
        raise DataError(Problem(name, f"{written} images but {len(labels)} labels"))
    if samples.keep is not None:
        labels, is_test = labels[samples.keep], is_test[samples.keep]
    problems += class_name_problems(names, name)
    for own, column in samples.questions(labels):
        known = column != UNLABELLED if samples.partly else np.ones(len(column), dtype=bool)
        problems += _class_problems(name, own, column[known], is_test[known])
    if not is_test.any() and len(names) >= 2:
        problems.append(Problem(f"{name}: test", "there are no test images"))
    if problems:
        raise DataError(problems)


def _class_problems(name: str, names: Sequence[str], labels: np.ndarray, is_test: np.ndarray) -> list[Problem]:
    """Return what is wrong with the labels [N] of one task, whose classes have these names."""
    problems: list[Problem] = []
    if len(names) < 2:
        only = f" ({names[0]!r})" if names else ""
        problems.append(
            Problem(name, f"there is only one class{only}" if names else "there are no images", "two or more classes")
        )
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
    return problems


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


def heads_of(sizes: Iterable[tuple[str, int]]) -> tuple[Head, ...]:
    """Return the heads of tasks of these names and numbers of classes, one after the other."""
    heads: list[Head] = []
    for name, outputs in sizes:
        heads.append(Head(name, outputs, heads[-1].places.stop if heads else 0))
    return tuple(heads)


def open_images(folder: Path) -> ImageData | None:
    """Return the entry in `folder`; None where there is none or it is damaged."""
    try:
        meta = json.loads((folder / META).read_text())
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        kept = folder / "keys.npy"
        keys = np.load(kept, allow_pickle=False) if kept.exists() else None
        train = int(meta["train_count"])
        heads = heads_of(meta.get("heads", []))
        shape = (len(images), len(heads)) if heads else (len(images),)
        if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != shape or train > len(labels):
            return None
        return ImageData(
            name=meta["name"],
            class_names=tuple(meta["class_names"]),
            train=Samples({"pixels": images[:train]}, labels[:train], None if keys is None else keys[:train]),
            test=Samples({"pixels": images[train:]}, labels[train:], None if keys is None else keys[train:]),
            fingerprint=meta["fingerprint"],
            channel_mean=tuple(meta["channel_mean"]),
            channel_std=tuple(meta["channel_std"]),
            notes=tuple(meta["notes"]),
            heads=heads,
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
