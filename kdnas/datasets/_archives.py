"""Archives read as streams: every member is checked, and nothing is ever extracted to disk."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from kdnas.errors import DataError, Problem

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A file or folder of an archive. `read` gives its content, and only until the next member is asked for."""

    parts: tuple[str, ...]
    is_folder: bool
    size: int
    read: Callable[[], bytes]

    @property
    def path(self) -> str:
        """The path inside the archive."""
        return "/".join(self.parts)


def is_archive(path: Path) -> bool:
    """Return whether the name of `path` is that of an archive kdnas reads."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def members(path: Path, max_member_bytes: int) -> Iterator[Member]:
    """Yield the members of an archive in one pass: a .zip's sorted by path, a .tar's in its own order.

    Raises DataError on an archive that is damaged or cut short, and on a member that is a link or a device, has an
    absolute path or a `..`, or holds more than `max_member_bytes`.
    """
    with _naming_damage(path):
        if path.name.lower().endswith(".zip"):
            yield from _zip_members(path, max_member_bytes)
        else:
            yield from _tar_members(path, max_member_bytes)


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turn what the readers raise on a damaged archive into DataError."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise DataError(Problem(str(path), f"the archive is damaged or cut short: {error}")) from error
    except (OSError, NotImplementedError, RuntimeError) as error:  # the last two: an unknown compression, a password
        raise DataError(Problem(str(path), f"the archive cannot be read: {error}")) from error


def _checked_parts(archive: Path, name: str, size: int, max_member_bytes: int) -> tuple[str, ...]:
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or (pure.parts and pure.parts[0].endswith(":")) or "\0" in name:
        raise DataError(Problem(str(archive), f"unsafe member {name!r}", "relative paths that stay inside the archive"))
    if size > max_member_bytes:
        raise DataError(Problem(str(archive), f"member {name!r} holds {size} bytes", f"at most {max_member_bytes}"))
    return pure.parts


def _tar_members(path: Path, max_member_bytes: int) -> Iterator[Member]:
    with _decompressed(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for info in tar:
            parts = _checked_parts(path, info.name, info.size, max_member_bytes)
            if not (info.isreg() or info.isdir()):
                kind = "link" if info.issym() or info.islnk() else "device or other special file"
                raise DataError(Problem(str(path), f"member {info.name!r} is a {kind}", "files and folders"))

            def read(info: tarfile.TarInfo = info) -> bytes:
                with _naming_damage(path):
                    file = tar.extractfile(info)  # a file object over the stream: nothing touches the disk
                    return file.read() if file is not None else b""

            yield Member(parts, info.isdir(), info.size, read)
        while stream.read(1 << 20):  # to the end, so that the decompressor checks its sums
            pass
    _refuse_cut_tar(path)


def _decompressed(path: Path) -> gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File | BinaryIO:
    """Return the tar stream inside `path`; these readers, unlike tarfile's own, notice a file that is cut short."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")
    if magic == b"\xfd7zXZ\x00":
        return lzma.open(path, "rb")
    if magic.startswith(b"BZh"):
        return bz2.open(path, "rb")
    return path.open("rb")


def _refuse_cut_tar(path: Path) -> None:
    """Raise ReadError where a plain tar does not end in zeros: tarfile takes one cut between members for whole."""
    with path.open("rb") as file:
        if file.read(2) in (b"\x1f\x8b", b"\xfd7", b"BZ"):
            return
        size = file.seek(0, 2)
        file.seek(max(0, size - _BLOCK))
        if any(file.read(_BLOCK)):
            raise tarfile.ReadError("it does not end as a tar archive does")


def _zip_members(path: Path, max_member_bytes: int) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            parts = _checked_parts(path, info.filename, info.file_size, max_member_bytes)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(
                    Problem(str(path), f"member {info.filename!r} is a link or a device", "files and folders")
                )

            def read(info: zipfile.ZipInfo = info) -> bytes:
                with _naming_damage(path):
                    return archive.read(info)

            yield Member(parts, info.is_dir(), info.file_size, read)
