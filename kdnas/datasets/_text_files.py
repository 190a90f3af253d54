"""Files of text: where they lie, also inside an archive, and how their bytes are read as characters."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TextIO

from kdnas.datasets._archives import is_archive, members
from kdnas.datasets._inputs import file_identity, locate_all
from kdnas.errors import DataError, Problem

_MEMBER_BYTES = 4 << 30
_CHUNK_BYTES = 1 << 20
_LISTED = 3
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SINGLE_BYTES = "cp1252"
"""What a file is read as of which no line with other than ASCII is UTF-8: what Windows writes in western Europe."""


@dataclass(frozen=True)
class TextFile:
    """A file of text; with a `member` the one of that path inside the archive `path`, whose `content` may be known."""

    path: Path
    member: str = ""
    content: bytes | None = None

    @property
    def shown(self) -> Path:
        """What it is called in messages."""
        return self.path / self.member if self.member else self.path

    @property
    def suffix(self) -> str:
        """The end of its name in small letters, such as .csv."""
        return self.shown.suffix.lower()

    @property
    def identity(self) -> dict[str, Any]:
        """A hash that differs between versions of it."""
        return {**file_identity(self.path), "member": self.member}

    @property
    def size(self) -> int:
        """Its bytes, an archive's as they are packed."""
        return self.path.stat().st_size

    def open(self) -> BinaryIO:
        """Return its bytes as a stream. Raises DataError."""
        if self.content is not None:
            return io.BytesIO(self.content)
        try:
            return io.BytesIO(_content(self)) if self.member else self.path.open("rb")
        except OSError as error:
            raise DataError(Problem(str(self.path), f"cannot be read: {error.strerror}")) from error

    def unpacked(self) -> TextFile:
        """Return it with its content where it lies in an archive, which is then read once. Raises DataError."""
        return replace(self, content=self.open().read()) if self.member and self.content is None else self


def find_text_files(data_root: Path, patterns: str | Sequence[str], put_there: str) -> list[TextFile]:
    """Return the files that the user's `patterns` name, relative to the data root: files, globs, or members of an
    archive as `reviews.tar.xz/train.tsv`. Raises DataError where one is not there.
    """
    found: list[TextFile] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        archive = next(
            (part for part in _above(pattern) if is_archive(Path(part)) and (data_root / part).is_file()), ""
        )
        if archive:
            found.append(TextFile(data_root.absolute() / archive, pattern[len(archive) :].strip("/")))
        else:
            found += [TextFile(path) for path in locate_all(data_root, pattern, put_there)]
    return found


def find_table_files(data_root: Path, patterns: str | Sequence[str], put_there: str) -> list[TextFile]:
    """Return the files as `find_text_files` does; a folder that `save_to_disk` wrote stands for those of its split."""
    found = find_text_files(data_root, patterns, put_there)
    return [
        part
        for file in found
        for part in (map(TextFile, arrow_files(file.path)) if not file.member and file.path.is_dir() else (file,))
    ]


def arrow_files(folder: Path) -> list[Path]:
    """Return the files of a split that Hugging Face's `save_to_disk` wrote, in their order. Raises DataError."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        what = "holds several splits" if splits else f"is no split that `save_to_disk` wrote ({type(error).__name__})"
        allowed = ", ".join(f"{folder.name}/{name}" for name in splits) or "a folder with state.json and .arrow files"
        raise DataError(Problem(str(folder), what, allowed)) from error


def _above(path: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(path).parents]


def _content(file: TextFile) -> bytes:
    """Return the bytes of a member of an archive. Raises DataError."""
    names = []
    for member in members(file.path, _MEMBER_BYTES):
        if member.path == file.member and not member.is_folder:
            return member.read()
        names.append(member.path)
    listed = ", ".join(sorted(names)[:10])
    raise DataError(Problem(str(file.path), f"has no member {file.member!r}", listed))


def open_text(file: TextFile, encoding: str) -> TextIO:
    """Return `file` as characters, line ends kept."""
    return io.TextIOWrapper(file.open(), encoding=encoding, newline="")


def checked_encoding(file: TextFile, stated: str | None) -> str:
    """Return what `file` is read as; the whole of it is looked at.

    `stated` None: UTF-8 or what a byte order mark states; one in which no line that has other signs than ASCII is UTF-8
    is read as Windows does in western Europe. Raises DataError where it cannot be read so, as a whole.
    """
    where = str(file.shown)
    with file.open() as stream:
        head = stream.read(4)
        marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
        stream.seek(0)
        if stated is not None:
            try:
                plain = codecs.lookup(stated).name
            except LookupError:
                allowed = "an encoding of Python's, such as utf-8, cp1252, utf-16"
                raise DataError(Problem("encoding", f"there is no {stated!r}", allowed)) from None
            encoding = "utf-8-sig" if plain == "utf-8" else plain
        elif marked is None and b"\0" in head:
            what = "holds zero bytes: it is UTF-16 without a mark, or no text"
            raise DataError(Problem(where, what, "the option `encoding`, such as utf-16-le"))
        else:
            encoding = marked or "utf-8"
        if _reads(stream, encoding):
            return encoding
    lines = list(_unlike(file, encoding))
    shown = ", ".join(f"line {number} (byte 0x{byte:02X})" for number, byte in lines[:_LISTED])
    more = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    if stated is not None or marked is not None:
        raise DataError(
            Problem(
                where, f"is not {encoding.removesuffix('-sig')}: {shown}{more}", "the encoding that it was written in"
            )
        )
    if not _has_other_utf8(file):
        with file.open() as stream:
            if _reads(stream, _SINGLE_BYTES):
                return _SINGLE_BYTES
    are = "is" if len(lines) == 1 else "are"
    what = f"mixes encodings: some lines are UTF-8, {len(lines)} {are} not: {shown}{more}"
    raise DataError(Problem(where, what, "one encoding, or the option `encoding`, such as cp1252"))


def _reads(stream: BinaryIO, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while chunk := stream.read(_CHUNK_BYTES):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _unlike(file: TextFile, encoding: str) -> Iterator[tuple[int, int]]:
    """Yield (number from 1, first wrong byte) of the lines that are not of `encoding`."""
    with file.open() as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                yield number, line[error.start]


def _has_other_utf8(file: TextFile) -> bool:
    """Whether some line that has other signs than ASCII is UTF-8."""
    with file.open() as stream:
        for line in stream:
            if not line.isascii():
                try:
                    line.decode()
                except UnicodeDecodeError:
                    continue
                return True
    return False
