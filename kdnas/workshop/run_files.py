"""What a run's machines hand each other: in the run folder, or through the store where they share none.

The controller's run folder is the run. A worker that shares no disk with it has a folder of its own for the run in its
cache, gets there what it needs, and puts what it has made: names are relative to the run folder on every machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from kdnas.errors import RunFolderError
from kdnas.record.run_folder import write_text
from kdnas.store import NO_STORE, Store

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
            (own.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{own.folder} cannot be written: {error.strerror or error}") from error
        return own

    def have(self, place: str) -> Path:
        """Return the path of a file of the run, there once it is anywhere."""
        path = self.folder / place
        if self.store.is_shared and not path.exists():
            self.store.get(self._name(place), path)
        return path

    def share(self, place: str, *, anew: bool = True) -> None:
        """Let the others have a file; not `anew`: unless they may have it already."""
        if self.store.is_shared and (anew or not self.store.has(self._name(place))):
            self.store.put(self._name(place), self.folder / place)

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
