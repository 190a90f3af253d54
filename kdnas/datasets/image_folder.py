"""Image files in one folder a class, on disk or inside an archive."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from kdnas.core.data import ImageData
from kdnas.core.words import counted, escaped
from kdnas.datasets import DATASETS
from kdnas.datasets._archives import ARCHIVE_SUFFIXES, Member, is_archive, members
from kdnas.datasets._cache import ImageWriter, Labelling, cached
from kdnas.datasets._folders import LAYOUT, Layout, Parts, Splits, lay_out
from kdnas.datasets._inputs import (
    Problems,
    Size,
    TestFraction,
    carve_test,
    file_identity,
    locate,
    stamp,
)
from kdnas.datasets._pictures import (
    HEAD_BYTES,
    Background,
    Conversion,
    NotAPictureError,
    PictureReader,
    has_picture_suffix,
    may_be_picture,
)
from kdnas.errors import DataError, Problem

_MAX_FILE_BYTES = 128 << 20
_PUT = "a folder or archive (" + ", ".join(ARCHIVE_SUFFIXES) + f") with {LAYOUT}"
_SAMPLED_FILES = 64
_SAMPLED_BYTES = 1 << 16


@DATASETS.register
def image_folder(
    data_root: Path,
    cache: Path,
    *,
    path: str,
    size: Size | None = None,
    grayscale: bool = False,
    background: Background = "white",
    train: str | None = None,
    test: str | None = None,
    test_fraction: TestFraction | None = None,
    class_names: tuple[str, ...] | None = None,
    keys: Literal["stem", "path"] | None = None,
) -> ImageData:
    """Image files, one folder a class: a folder, or a .tar, .tar.gz, .tar.xz or .zip of one.

    The layout is train/<class>/* with test/<class>/* (else val/<class>/*), or just <class>/* with a `test_fraction`;
    split folders are known by their usual names in any case, and folders around them are ignored. Archives are read as
    a stream and never extracted. Images are sorted by path, so that a folder and its archive give the same data.

    Every file that Pillow reads is an image, whatever its suffix; other and hidden files are left out, counted in a
    note. Images are shown as a viewer does: upright by their EXIF orientation, 16 bits a channel cut to the upper 8,
    the first frame of an animation.

    Args:
        data_root: The folder that `path` is relative to.
        cache: kdnas's cache folder.
        path: The folder or archive.
        size: Resize every image bilinearly to a square of this side, or to (height, width); aspect ratios are not kept.
        grayscale: One channel instead of three.
        background: The colour behind transparent parts: a name such as white, or '#rrggbb'.
        train: The folder below `path` that holds the training split's class folders, `.` for `path` itself, where its
            name does not show; images outside the splits are left out then, and refused otherwise.
        test: The same for the test split.
        test_fraction: Share of every class that makes the test split, for data that has none; always the same images.
        class_names: The names of the class folders in the order of the classes; sorted as texts where not given.
        keys: What tells an image from all others, so that a teacher's own samples are found (`pair: key`): the file's
            name without its suffix, or its path below `path` without it.

    Raises DataError naming every missing, empty, unreadable, misplaced or unsafe file.
    """
    source = locate(data_root, path, _PUT)
    if source.is_file() and not is_archive(source):
        raise DataError(Problem(str(source), "is neither a folder nor an archive", ", ".join(ARCHIVE_SUFFIXES)))
    splits, reader = Splits(train, test, test_fraction), PictureReader(size, grayscale, background)
    listing = _listing(source) if source.is_dir() else None
    identity = {
        "source": file_identity(source) if listing is None else _folder_identity(source, listing.members),
        "pictures": reader.identity,
        "splits": [train, test, test_fraction],
        "class_names": class_names,
        **({"keys": keys} if keys is not None else {}),
    }

    def decode(writer: ImageWriter) -> Labelling:
        reading = _Reading(source, splits, class_names, reader, writer)
        if listing is None:
            reading.stream(members(source, _MAX_FILE_BYTES))
        else:
            reading.listed(listing)
        return reading.samples() if keys is None else replace(reading.samples(), keys=reading.keys(keys))

    return cached(escaped(source.name), cache, identity, decode)


@dataclass(frozen=True)
class _Listing:
    """Everything below a folder, sorted."""

    members: tuple[Member, ...]
    loops: int
    """Links that lead back to a folder around them."""


class _Reading:
    """One pass over the files of a data set: which are pictures, what they are, and what was left out."""

    def __init__(
        self,
        source: Path,
        splits: Splits,
        class_names: tuple[str, ...] | None,
        reader: PictureReader,
        writer: ImageWriter,
    ):
        self._source = source
        self._splits = splits
        self._class_names = class_names
        self._reader = reader
        self._writer = writer
        self._problems = Problems()
        self._folders: set[Parts] = set()
        self._written: list[Parts] = []
        self._conversions: list[tuple[Conversion, ...]] = []
        self._hidden: list[Parts] = []
        self._others: list[Parts] = []
        self._notes: list[str] = []

    def stream(self, entries: Iterator[Member]) -> None:
        """Write every picture of an archive as it comes; which of them are used shows at the end."""
        for member in entries:
            if self._is_file(member):
                content = member.read()
                if has_picture_suffix(member.parts[-1]) or may_be_picture(content[:HEAD_BYTES]):
                    self._write(member, content)
                else:
                    self._others.append(member.parts)

    def listed(self, listing: _Listing) -> None:
        """Write the pictures of a folder that are used, training ones first; judges the layout before any decoding."""
        candidates = []
        for member in listing.members:
            if self._is_file(member):
                if has_picture_suffix(member.parts[-1]) or may_be_picture(_head(self._source, member)):
                    candidates.append(member)
                else:
                    self._others.append(member.parts)
        layout = self._laid_out([member.parts for member in candidates])
        if listing.loops:
            self._notes.append(f"{counted(listing.loops, 'link')} back to a folder around it: not followed")
        self._notes += layout.notes
        used = [member for member in candidates if member.parts in layout.places]
        for member in sorted(used, key=lambda member: layout.places[member.parts].is_test):
            try:
                content = member.read()
            except OSError as error:
                self._add_problem(member, f"cannot be read: {error.strerror}")
                continue
            self._write(member, content)

    def samples(self) -> Labelling:
        """Return what was written. Raises DataError with every problem found."""
        self._problems.raise_if_any()
        layout = self._laid_out(self._written)
        last = {parts: i for i, parts in enumerate(self._written)}  # an archive may hold a path anew, which replaces it
        keep = np.array([last[parts] for parts in sorted(layout.places)], dtype=np.int64)
        labels = np.zeros(len(self._written), dtype=np.int64)
        is_test = np.zeros(len(self._written), dtype=bool)
        labels[keep] = [layout.places[self._written[i]].label for i in keep]
        is_test[keep] = [layout.places[self._written[i]].is_test for i in keep]
        if self._splits.test_fraction is not None:
            is_test[keep] = carve_test(labels[keep], self._splits.test_fraction)
        converted = self._reader.notes([self._conversions[i] for i in keep])
        notes = dict.fromkeys((*self._notes, *layout.notes, *self._left_out(), *converted))
        return Labelling(layout.class_names, labels, is_test, keep, tuple(notes))

    def keys(self, kind: Literal["stem", "path"]) -> list[str]:
        """Return the keys of all that was written."""
        paths = [PurePosixPath(*parts) for parts in self._written]
        return [path.stem if kind == "stem" else str(path.with_suffix("")) for path in paths]

    def _laid_out(self, pictures: Sequence[Parts]) -> Layout:
        """Return where the pictures belong. Raises DataError."""
        if not pictures and self._hidden:
            what = f"holds no images but in hidden folders: {'; '.join(self._left_out())}"
            raise DataError(Problem(escaped(str(self._source)), what, LAYOUT))
        layout = lay_out(pictures, self._folders, str(self._source), self._splits)
        return layout if self._class_names is None else layout.in_order(self._class_names)

    def _is_file(self, member: Member) -> bool:
        """Note what `member` is; return whether it may be a picture."""
        parts = member.parts
        if not parts:
            return False
        if parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts):
            if not member.is_folder and parts[-1] not in _LITTER:
                self._hidden.append(parts)
            return False
        if member.is_folder:
            self._folders.add(parts)
        return not member.is_folder and parts[-1] not in _LITTER

    def _write(self, member: Member, content: bytes) -> None:
        """Append a picture, or note what is wrong with it."""
        try:
            picture = self._reader.read(content, member.parts[-1])
        except NotAPictureError as error:
            if has_picture_suffix(member.parts[-1]):
                self._add_problem(member, str(error))
            else:
                self._others.append(member.parts)
            return
        except ValueError as error:
            self._add_problem(member, str(error))
            return
        shape, first = self._writer.shape, picture.pixels.shape
        if shape in (None, first):
            self._writer.append(picture.pixels)
            self._written.append(member.parts)
            self._conversions.append(picture.conversions)
        else:
            assert shape is not None
            other = escaped("/".join(self._written[0]))
            what = f"is {first[2]}x{first[1]} pixels, but {other} {shape[2]}x{shape[1]}"
            self._add_problem(member, what, "one size, or the option `size` to resize")

    def _add_problem(self, member: Member, what: str, allowed: str = "") -> None:
        self._problems.add(escaped(f"{self._source}: {member.path}"), what, allowed)

    def _left_out(self) -> list[str]:
        """Return in words which files are no part of the data set."""
        notes = []
        if self._others:
            kinds = Counter(PurePosixPath(parts[-1]).suffix.lower() or "without suffix" for parts in self._others)
            shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_KINDS_SHOWN))
            more = ", ..." if len(kinds) > _KINDS_SHOWN else ""
            notes.append(f"left out as no pictures: {counted(len(self._others), 'file')} ({escaped(shown)}{more})")
        if self._hidden:
            folders = Counter(
                next(part for part in parts if part.startswith(".") or part == "__MACOSX") for parts in self._hidden
            )
            shown = ", ".join(name for name, _ in folders.most_common(_KINDS_SHOWN))
            notes.append(f"left out as hidden: {counted(len(self._hidden), 'file')} ({escaped(shown)})")
        return notes


_KINDS_SHOWN = 5
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep", ".keep", ".gitignore", ".directory")
"""What file managers and git leave in every folder: nobody misses it."""


def _listing(source: Path) -> _Listing:
    """Return everything below a folder, sorted; links are followed unless they lead back to a folder around them.

    Raises DataError where a folder cannot be read.
    """
    found: list[Member] = []
    loops = 0

    def walk(folder: Path, parts: Parts, around: tuple[tuple[int, int], ...]) -> None:
        nonlocal loops
        try:
            status = folder.stat()
            here = (status.st_dev, status.st_ino)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(Problem(escaped(str(folder)), f"cannot be read: {error.strerror}")) from error
        if here in around:
            loops += 1
            return
        found.append(Member(parts, True, 0, bytes))
        for entry in entries:
            file = folder / entry.name
            there = file if entry.is_symlink() else entry  # only a link costs a look at what it leads to
            if there.is_dir():
                walk(file, (*parts, entry.name), (*around, here))
            elif there.is_file() or not file.exists():  # reading a dangling link fails; never a pipe or a socket
                found.append(Member((*parts, entry.name), False, 0, file.read_bytes))

    walk(source, (), ())
    return _Listing(tuple(found), loops)


def _head(source: Path, member: Member) -> bytes:
    """Return the first bytes of a file; none where it cannot be read."""
    try:
        with source.joinpath(*member.parts).open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _folder_identity(source: Path, listing: Sequence[Member]) -> list[object]:
    """Return what differs between states of a folder: every file's stamp, and samples of some contents."""
    entries: list[object] = [str(source)]
    files = [member for member in listing if not member.is_folder]
    for member in listing:
        if member.is_folder:
            entries.append(member.path)
        else:
            try:
                entries.append([member.path, *stamp(source.joinpath(*member.parts).stat())])
            except OSError:  # a dangling link: reading it fails with the reason
                entries.append([member.path])
    samples = hashlib.sha256()
    for index in np.unique(np.linspace(0, len(files) - 1, min(_SAMPLED_FILES, len(files))).astype(int)):
        try:
            with source.joinpath(*files[index].parts).open("rb") as file:
                samples.update(file.read(_SAMPLED_BYTES))
        except OSError:
            continue
    return [*entries, samples.hexdigest()]
