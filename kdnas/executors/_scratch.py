"""A temporary folder for what an executor starts besides workers, which does not outlive its owner for long."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path
from typing import IO


class Scratch:
    """A private temporary folder that is removed with its owner; those of dead owners are cleared first.

    Its name starts with `prefix`. It lies in /tmp where the path of the system's own place is longer than
    `longest_place`, since the path of a socket has at most 107 characters.
    """

    def __init__(self, prefix: str, longest_place: int) -> None:
        place = tempfile.gettempdir()
        place = place if len(place) <= longest_place else "/tmp"
        for folder in Path(place).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # of another user, or gone meanwhile
                _lock(folder).close()
                shutil.rmtree(folder, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))  # mode 0700
        self._held = _lock(self.path)

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._held.close()


def _lock(folder: Path) -> IO[str]:
    """Return the lock of `folder`, held until it is closed. Raises OSError when a living owner holds it."""
    guard = (folder / "controller").open("a")
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        guard.close()
        raise
    return guard
