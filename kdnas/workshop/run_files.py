"""What a run's machines hand each other: in the run folder, or through the store where they share none.

The controller's run folder is the run. A worker that shares no disk with it has a folder of its own for the run in its
cache, gets there what it needs, and puts what it has made: names are relative to the run folder on every machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kdnas.errors import RunFolderError
from kdnas.record.run_folder import locked, write_text
from kdnas.store import NO_STORE, Store

FAMILY_FILE = "family.json"
"""What the students' family has found out in the teacher."""
LIBRARY_FILE = "blocks.json"
SUPERNET_FOLDER = "supernet"
"""Relative to the run folder."""
CHECKPOINT_FILE = "checkpoint.safetensors"
"""Of a training that goes on; whoever trains alone needs it."""
TEACHER_FILE = "teacher-{}"
"""A teacher that was trained for the run, by the name that the cache has for it."""
_MADE_ONCE = (FAMILY_FILE, LIBRARY_FILE, f"{SUPERNET_FOLDER}/*", TEACHER_FILE.format("*.safetensors"))
_LOOK_AGAIN_S = 3600.0
"""Folders of old runs are looked for once in so long."""
_GUARD = ".worker"
_KEPT_S = 14 * 86_400.0
_KEPT_BYTES = 50 << 30
_RUN = ".store"
"""The file with the run's name in the store."""
_RUN_NAME = re.compile(r"[A-Za-z0-9._-]+-[0-9a-f]{16}")


@dataclass(frozen=True)
class RunFiles:
    """The files of one run on this machine. Raises RunFolderError where they cannot be written or had."""

    folder: Path
    store: Store = NO_STORE
    run: str = ""
    """What the store calls the run."""

    @classmethod
    def of_controller(cls, folder: Path, store: Store, study: str) -> RunFiles:
        """Return the files of the run of `study` in `folder`, which its controller holds."""
        if not store.is_shared:
            return cls(folder)
        file, run = folder / _RUN, ""
        with contextlib.suppress(OSError, ValueError):
            run = file.read_text(encoding="utf-8").strip()
        if not _RUN_NAME.fullmatch(run):
            run = f"{re.sub(r'[^A-Za-z0-9_-]', '-', study)}-{secrets.token_hex(8)}"
            write_text(file, f"{run}\n")
        return cls(folder, store, run)

    def at(self, cache: Path) -> RunFiles:
        """Return the run's files on a machine with the cache folder `cache`, which shares none with the controller."""
        own = dataclasses.replace(self, folder=cache / "runs" / self.run)
        try:
            _hold(own.folder)
        except OSError as error:
            raise RunFolderError(f"{own.folder} cannot be written: {error.strerror or error}") from error
        _make_room(cache / "runs")
        return own

    @property
    def travels(self) -> bool:
        """Whether they go through a store, which knows the run by its name."""
        return self.store.is_shared and bool(self.run)

    def have(self, place: str) -> Path:
        """Return the path of a file of the run, there once it is anywhere."""
        path = self.folder / place
        if self.travels and not path.exists():
            self.store.get(self._name(place), path)
        return path

    def have_anew(self, place: str) -> None:
        """Have a file or a folder of the run as it was shared last, whatever is here."""
        if self.travels:
            shutil.rmtree(self.folder / place, ignore_errors=True)
            self.have(place)

    def have_latest(self, place: str) -> None:
        """Have a file as it was shared last, where it was: one of this machine's own may be older."""
        if self.travels and self.store.has(self._name(place)):
            (self.folder / place).unlink(missing_ok=True)
            self.have(place)

    def share_latest(self, place: str) -> None:
        """Let whoever goes on elsewhere have a file as it is now; what was shared before it is removed."""
        if self.travels:
            self.store.put(self._name(place), self.folder / place, alone=True)

    def share(self, place: str, *, anew: bool = True) -> None:
        """Let the others have a file; not `anew`: unless they may have it already."""
        if self.travels and (anew or not self.store.has(self._name(place))):
            self.store.put(self._name(place), self.folder / place)

    def share_made(self) -> tuple[str, ...]:
        """Let the others have what is made once for the whole run, as far as it is there; return those files."""
        if not self.travels:
            return ()
        found = (path for pattern in _MADE_ONCE for path in self.folder.glob(pattern))
        places = sorted(
            str(path.relative_to(self.folder)) for path in found if path.is_file() and path.name != CHECKPOINT_FILE
        )
        for place in places:
            self.share(place, anew=False)
        return tuple(places)

    def under(self, place: str) -> list[str]:
        """Return the files in a folder of the run, wherever they are."""
        here = [str(path.relative_to(self.folder)) for path in (self.folder / place).glob("*") if path.is_file()]
        prefix = self._name("")
        return sorted({*here, *(name.removeprefix(prefix) for name in self.store.names(self._name(place)))})

    def clear(self, place: str) -> None:
        """Remove a folder, here and from the store."""
        for inside in self.under(place):
            self.forget(inside)
        shutil.rmtree(self.folder / place, ignore_errors=True)

    def forget(self, place: str) -> None:
        """Remove a file, here and from the store."""
        (self.folder / place).unlink(missing_ok=True)
        self.store.drop(self._name(place))

    def _name(self, place: str) -> str:
        return f"runs/{self.run}/{place}"


_held: dict[Path, IO[str]] = {}
"""The guards of the folders that this process works in, open for its life."""


def _hold(folder: Path) -> None:
    """Make a worker's folder of a run, and keep it from being removed while this process lives."""
    while folder not in _held or not (folder / _GUARD).exists():
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        guard = (folder / _GUARD).open("a")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(guard, fcntl.LOCK_SH)
        _held[folder] = guard  # unless it was removed meanwhile
    os.utime(folder / _GUARD)


def _make_room(runs: Path) -> None:
    """Remove the folders of runs that no worker of this machine has used for long, and the oldest beyond what is kept.

    All that is in them is in the run's store, or is made again. To look takes a walk through all of them, so one
    worker in an hour does it.
    """
    looked = runs / ".looked"
    with contextlib.suppress(OSError):
        if time.time() - looked.stat().st_mtime < _LOOK_AGAIN_S:
            return
    with contextlib.suppress(OSError):
        looked.touch()
    found = sorted(((_last_used(folder), folder) for folder in runs.iterdir() if folder.is_dir()), reverse=True)
    kept = 0
    for used, folder in found:
        with contextlib.suppress(OSError):  # other workers write there, and remove folders themselves
            kept += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if time.time() - used > _KEPT_S or kept > _KEPT_BYTES:
                with (folder / _GUARD).open("a") as guard:
                    if locked(guard):
                        shutil.rmtree(folder)


def _last_used(folder: Path) -> float:
    for path in (folder / _GUARD, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0
