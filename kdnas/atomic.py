"""Files that are written whole or not at all: readers get the old content or the new, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kdnas.faults import reach

_QUIET_S = 5.0
"""A scratch file of a process on another machine is written to more often than that."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a scratch file next to `path` to be written; at the end it is put in its place, after an error removed.

    What a killed process left of the same file is removed first.

    The content reaches the disk before the name does. The file gets the usual mode of a new file, also where the writer
    makes private ones. Raises OSError where the folder is missing or cannot be written.
    """
    _clear(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    if scratch.is_symlink():  # planted: who unpacks a stranger's folder would write elsewhere
        scratch.unlink()
    try:
        os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666))
        mode = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        reach("replacing")
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or never made
            scratch.unlink()


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give a scratch folder next to `path`, removed at the end; what a killed process left of it is removed first.

    Raises OSError where it cannot be made.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}-*"):
        if re.fullmatch(r"-[a-z0-9_]{8}", left.name[len(path.name) + 1 :]) and left.is_dir():
            with contextlib.suppress(OSError), _held(left):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with _held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which falls with this process. Raises OSError where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove the scratch files of `path` whose processes are gone."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        pid = left.name.rpartition(".")[2]
        with contextlib.suppress(OSError):
            if pid.isdecimal() and not _lives(int(pid)) and time.time() - left.stat().st_mtime > _QUIET_S:
                left.unlink()


def sweep(folder: Path) -> None:
    """Remove what processes that are gone left of files in `folder`, and in the folders in it, that they wrote."""
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for left in place.glob(".*.*"):
            if re.fullmatch(r"\..+\.\d+", left.name) and left.is_file():
                _clear(left.with_name(left.name[1:].rpartition(".")[0]))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all. Raises OSError."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")
