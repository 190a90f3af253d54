"""Image files in one folder a class, on disk or inside an archive."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdnas.core.data import ImageData
from kdnas.datasets import DATASETS
from kdnas.datasets._archives import ARCHIVE_SUFFIXES, Member, is_archive, members
from kdnas.datasets._cache import ImageWriter, Samples, cached
from kdnas.datasets._inputs import (
    IMAGE_SUFFIXES,
    Problems,
    Size,
    TestFraction,
    carve_test,
    decode_image,
    file_identity,
    height_width,
    locate,
)
from kdnas.errors import DataError, Problem

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")  # the first that is there
_MAX_FILE_BYTES = 128 << 20
_LAYOUT = (
    "a folder or archive (" + ", ".join(ARCHIVE_SUFFIXES) + ") with train/<class>/* and test/<class>/*, or <class>/*"
)

Parts = tuple[str, ...]


@DATASETS.register
def image_folder(
    data_root: Path,
    cache: Path,
    *,
    path: str,
    size: Size | None = None,
    grayscale: bool = False,
    test_fraction: TestFraction | None = None,
) -> ImageData:
    """Image files, one folder a class: a folder, or a .tar, .tar.gz, .tar.xz or .zip of one.

    The layout is train/<class>/* with test/<class>/* (else val/<class>/*), or just <class>/* with a `test_fraction`;
    folders around that are ignored. Archives are read as a stream and never extracted. Images are sorted by path, so
    that a folder and its archive give the same data.

    Args:
        data_root: The folder that `path` is relative to.
        cache: kdnas's cache folder.
        path: The folder or archive.
        size: Resize every image bilinearly to a square of this side, or to (height, width); aspect ratios are not kept.
        grayscale: One channel instead of three.
        test_fraction: Share of every class that makes the test split, for data that has none; always the same images.

    Raises DataError naming every missing, empty, unreadable, misplaced or unsafe file.
    """
    source = locate(data_root, path, _LAYOUT)
    if source.is_file() and not is_archive(source):
        raise DataError(Problem(str(source), "is neither a folder nor an archive", ", ".join(ARCHIVE_SUFFIXES)))
    listing = list(_walk(source)) if source.is_dir() else None
    identity = {
        "source": file_identity(source) if listing is None else _folder_identity(source, listing),
        "size": height_width(size),
        "grayscale": grayscale,
        "test_fraction": test_fraction,
    }

    def decode(writer: ImageWriter) -> Samples:
        entries = members(source, _MAX_FILE_BYTES) if listing is None else _planned(listing, source, test_fraction)
        return _decode(entries, source, writer, height_width(size), grayscale, test_fraction)

    return cached(source.name, cache, identity, decode)


@dataclass
class _Seen:
    """The image files and folders met so far, by path."""

    images: list[Parts] = field(default_factory=list)
    folders: set[Parts] = field(default_factory=set)

    def add(self, member: Member) -> bool:
        """Note `member`; return whether it is an image."""
        parts = member.parts
        if not parts or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
            return False
        if member.is_folder:
            self.folders.add(parts)
            return False
        if not parts[-1].lower().endswith(IMAGE_SUFFIXES):
            return False
        self.images.append(parts)
        return True


def _walk(source: Path) -> Iterator[Member]:
    """Yield everything below a folder, sorted; links to folders are followed, each folder once."""
    visited: set[Path] = set()
    for folder, names, files in os.walk(source, followlinks=True):
        real = Path(folder).resolve()
        if real in visited:
            names.clear()
            continue
        visited.add(real)
        names.sort()
        parts = Path(folder).relative_to(source).parts
        yield Member(parts, True, 0, bytes)
        for name in sorted(files):
            file = Path(folder, name)
            yield Member((*parts, name), False, 0, file.read_bytes)


def _planned(listing: Sequence[Member], source: Path, test_fraction: float | None) -> Iterator[Member]:
    """Return the images that belong to the data set, training ones first; judges the layout before any decoding."""
    seen = _Seen()
    images = [member for member in listing if seen.add(member)]
    samples = _samples(seen, source, test_fraction)
    order = np.arange(len(images)) if samples.keep is None else samples.keep
    return iter([images[i] for i in sorted(order, key=lambda i: samples.is_test[i])])


def _folder_identity(source: Path, listing: Sequence[Member]) -> list[object]:
    entries: list[object] = [str(source)]
    for member in listing:
        if member.is_folder:
            entries.append(member.path)
        else:
            try:
                status = source.joinpath(*member.parts).stat()
                entries.append([member.path, status.st_size, status.st_mtime_ns])
            except OSError:  # a link to nothing; reading it tells
                entries.append([member.path])
    return entries


def _decode(
    entries: Iterator[Member],
    source: Path,
    writer: ImageWriter,
    size: tuple[int, int] | None,
    grayscale: bool,
    test_fraction: float | None,
) -> Samples:
    """Write every image in the order met and return what they are."""
    seen, problems = _Seen(), Problems()
    first = ""
    for member in entries:
        if not seen.add(member):
            continue
        try:
            image = decode_image(member.read(), size, grayscale)
        except ValueError as error:
            problems.add(f"{source}: {member.path}", str(error))
            continue
        except OSError as error:
            problems.add(f"{source}: {member.path}", f"cannot be read: {error.strerror}")
            continue
        if writer.shape in (None, image.shape):
            first = first or member.path
            writer.append(image)
        else:
            assert writer.shape is not None
            what = f"is {image.shape[2]}x{image.shape[1]} pixels, but {first} {writer.shape[2]}x{writer.shape[1]}"
            problems.add(f"{source}: {member.path}", what, "one size, or the option `size` to resize")
    problems.raise_if_any()
    return _samples(seen, source, test_fraction)


def _samples(seen: _Seen, source: Path, test_fraction: float | None) -> Samples:
    """Return which class and split every image belongs to, by its path. Raises DataError on any other layout."""
    if not seen.images:
        raise DataError(Problem(str(source), "holds no images", _LAYOUT))
    strip = _wrapping(seen.images)
    images = [parts[strip:] for parts in seen.images]
    folders = {parts[strip:] for parts in seen.folders if parts[:strip] == seen.images[0][:strip]}
    tops = {parts[0] for parts in images if len(parts) > 1} | {parts[0] for parts in folders if parts}
    train = next((name for name in _TRAIN if name in tops), None)
    test = next((name for name in _TEST if name in tops), None) if train is not None else None
    problems = Problems()
    if test is None and test_fraction is None:
        problems.add(
            str(source), "has no test split", "a folder test/ or val/ beside train/, or the option `test_fraction`"
        )
    if test is not None and test_fraction is not None:
        problems.add(
            str(source), f"has a test split, {test}/, and the option `test_fraction` is given", "one of the two"
        )
    depth = 0 if train is None else 1
    splits = [()] if train is None else [(name,) for name in (train, test) if name is not None]
    found = [_classes(images, folders, split, f"{source}: ", problems) for split in splits]
    names = tuple(sorted(found[0]))
    if len(found) == 2 and found[0] != found[1]:
        for split, extra in ((train, found[0] - found[1]), (test, found[1] - found[0])):
            if extra:
                problems.add(str(source), f"train and test have different classes: only in {split}/: {_listed(extra)}")
    problems.raise_if_any()
    label_of = {name: label for label, name in enumerate(names)}
    kept = [i for i, parts in enumerate(images) if len(parts) > depth + 1 and (depth == 0 or (parts[0],) in splits)]
    keep = np.array(sorted(kept, key=lambda i: images[i]), dtype=np.int64)
    labels = np.zeros(len(images), dtype=np.int64)
    labels[keep] = [label_of[images[i][depth]] for i in keep]
    is_test = np.zeros(len(images), dtype=bool)
    if test_fraction is not None:
        is_test[keep] = carve_test(labels[keep], test_fraction)
    else:
        is_test[keep] = [images[i][0] == test for i in keep]
    return Samples(names, labels, is_test, keep)


def _wrapping(images: Sequence[Parts]) -> int:
    """Return how many folders around the layout all images share."""
    strip = 0
    while all(len(parts) > strip + 2 and parts[strip] == images[0][strip] for parts in images):
        if images[0][strip] in _TRAIN:
            break
        strip += 1
    return strip


def _classes(images: Sequence[Parts], folders: set[Parts], split: Parts, where: str, problems: Problems) -> set[str]:
    """Return the classes of one split; adds empty class folders and images in no class folder to `problems`."""
    depth = len(split)
    inside = [parts for parts in images if parts[:depth] == split]
    for parts in inside:
        if len(parts) == depth + 1:
            problems.add(where + "/".join(parts), "lies in no class folder")
    filled = {parts[depth] for parts in inside if len(parts) > depth + 1}
    empty = {parts[depth] for parts in folders if len(parts) == depth + 1 and parts[:depth] == split} - filled
    for name in sorted(empty):
        problems.add(where + "/".join((*split, name)), "the class folder holds no images")
    return filled | empty


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
