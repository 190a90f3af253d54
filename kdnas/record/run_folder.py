"""The run folder: one study, and one controller at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kdnas import atomic
from kdnas.errors import RunFolderError

LOCK_FILE = "study.lock.yaml"
_GUARD = ".controller"


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all. Raises RunFolderError naming the path."""
    try:
        atomic.write_text(path, text)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def controller_lock(folder: Path) -> Iterator[None]:
    """Hold the run folder, created where there is none, for one controller.

    The system frees it when the process dies. Where the work ends before a run was recorded, a folder made here is
    removed again. Raises RunFolderError when the folder cannot be made or written, is held by another controller, or
    holds something else than a run.
    """
    created = not folder.exists()
    try:
        if not created:
            _refuse_strangers(folder)  # before anything is written there
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be used as a run folder: {error.strerror or error}") from error
    with exclusively(folder / _GUARD, "kdnas search"):
        try:
            with contextlib.suppress(OSError):
                atomic.sweep(folder)
            yield
        finally:
            if created and not (folder / LOCK_FILE).exists():  # while the lock still keeps others out
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def exclusively(guard: Path, command: str) -> Iterator[None]:
    """Hold the folder of the file `guard` for one process of `command`; the system frees it when that dies.

    Raises RunFolderError when another holds it or the file cannot be made.
    """
    try:
        file = guard.open("a")
    except OSError as error:
        raise RunFolderError(f"{guard.parent} cannot be written: {error.strerror or error}") from error
    with file:
        if not locked(file):
            raise RunFolderError(f"{guard.parent} is in use by another {command}")
        yield


def locked(file: IO[str], *, wait: bool = False) -> bool:
    """Lock the open `file` until it is closed; False where another process holds it and `wait` is not asked for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def refuse_links(folder: Path) -> None:
    """Raise RunFolderError where a link in `folder`, at any depth, leads out of it, or in a circle.

    Whoever made the folder would have this user's other files read, shown or overwritten.
    """
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if not path.is_symlink():
                continue
            end = Path(os.path.realpath(path))
            if end.is_symlink():  # Path.resolve raises another error in each version of Python
                raise RunFolderError(f"{path} is a link that leads in a circle: remove it")
            if not end.is_relative_to(inside):
                what = "is a link that leads out of its folder, so it is not followed"
                raise RunFolderError(f"{path} {what}: put what it leads to in its place, or remove it")


def _refuse_strangers(folder: Path) -> None:
    refuse_links(folder)
    stranger = next((p.name for p in folder.iterdir() if p.name != "checkpoints" and not p.name.startswith(".")), None)
    if stranger is not None and not (folder / LOCK_FILE).exists():
        raise RunFolderError(f"{folder} is not empty and not a kdnas run (it holds {stranger}); choose another --out")
