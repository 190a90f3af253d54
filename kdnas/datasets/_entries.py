"""Entries of the cache of read data: folders made once, opened ever after.

    <cache>/datasets/<key>/meta.json        with its fingerprint, and whatever else the kind of data keeps
                           checksums.json   of every file: one that is not what was written is made anew

An entry is written in a temporary folder next to its place and renamed when it is whole: readers never see half of one,
an interrupted reading leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from kdnas import checksums
from kdnas.core.data import Data
from kdnas.errors import DataError, Problem

try:
    import fcntl
except ImportError:  # no POSIX locks: processes may then read the same data side by side, the first one done wins
    fcntl = None  # type: ignore[assignment]

META = "meta.json"
Opened = TypeVar("Opened", bound=Data)


def kept_entry(
    name: str,
    cache: Path,
    identity: Mapping[str, Any],
    make: Callable[[Path], None],
    opened: Callable[[Path], Opened | None],
) -> Opened:
    """Return the data set that `identity` names from the cache, made first where it is not there.

    Args:
        name: The source's name, shown to the user, which the entry has too.
        cache: kdnas's cache folder; made where it is missing.
        identity: Everything that decides the entry, JSON-serialisable.
        make: Writes the entry into a folder. Raises DataError.
        opened: Opens the entry in a folder; None where there is none or it is damaged.

    Raises DataError: from `make`; where the cache cannot be written.
    """
    whole = {"name": name, **identity}
    key = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:20]
    folder = cache / "datasets" / key
    data = open_intact(folder, opened)
    if data is not None:
        return data
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / f"{key}.lock", name) as alone:
            data = open_intact(folder, opened)
            if data is None:
                if folder.exists():
                    why = checksums.damage(folder) or "it cannot be read"
                    print(f"note: {folder}: {why}: {name} is decoded anew", file=sys.stderr, flush=True)
                if alone:  # what a killed process left
                    for left in folder.parent.glob(f".{key}-*"):
                        shutil.rmtree(left, ignore_errors=True)
                _make(folder, make, opened)
                data = open_intact(folder, opened)
    except OSError as error:
        reason = f"cannot keep the data here as they are read: {error.strerror or error}"
        raise DataError(
            Problem(str(cache), reason, "free space in a writable folder; KDNAS_CACHE names another")
        ) from error
    if data is None:
        raise DataError(Problem(str(folder), "the decoded data vanished while it was being opened"))
    return data


def open_intact(folder: Path, opened: Callable[[Path], Opened | None]) -> Opened | None:
    """Return the entry in `folder`; None where there is none, it is damaged, or nothing records what it should be."""
    return None if not folder.is_dir() or checksums.damage(folder) else opened(folder)


def content_hash(meta: Mapping[str, Any], files: Iterable[Path]) -> str:
    """Return the SHA-256 of an entry's content: of the description by which its `files` are read, and of these."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _make(folder: Path, make: Callable[[Path], None], opened: Callable[[Path], Opened | None]) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        make(work)
        checksums.seal(work)
        work.chmod(0o755)
        if folder.exists() and open_intact(folder, opened) is None:  # a damaged entry makes room
            shutil.rmtree(folder)
        try:
            work.replace(folder)
        except OSError:  # without locks another process may have been first; its entry has the same content
            if open_intact(folder, opened) is None:
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[bool]:
    """Hold the lock of one key, waiting for it, which is reported; gives whether this process is certainly alone."""
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
