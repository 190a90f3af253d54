"""One device slot of a Ray cluster: the actor that has it, and the messages between it and the controller.

The actor keeps the `local` executor with one worker where it is. So a job's crash, time limit or full memory ends that
worker alone and is reported as on this machine; an actor that is lost was lost with its node, through no fault of the
job.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdnas.errors import InputError, RunError
from kdnas.executors import EXECUTORS, Finished
from kdnas.executors._listening import ListeningExecutor
from kdnas.version import __version__

_LONGEST_SILENCE_S = 20.0
_NEWS_S = 1.0
"""How often passing words are handed on, at most."""
_LOOK_S = 0.25


@dataclass(frozen=True)
class Surroundings:
    """What of the controller's process a worker needs to find the same code: its folder and its import path."""

    folder: str
    path: tuple[str, ...]

    @classmethod
    def here(cls) -> Surroundings:
        """Return those of this process."""
        return cls(str(Path.cwd()), tuple(entry for entry in sys.path if entry))

    def enter(self) -> None:
        """Be in that folder and import from there too, as far as there is such a thing on this machine."""
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        sys.path += [entry for entry in self.path if entry not in sys.path and Path(entry).exists()]


@dataclass(frozen=True)
class Place:
    """Where a slot is."""

    host: str
    version: str
    """Of kdnas there."""


@dataclass(frozen=True)
class Heard:
    """The news of a slot since the last call."""

    finished: tuple[Finished[Any], ...] = ()
    notes: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    progress: Mapping[str, float] = field(default_factory=dict)
    opening: bool = False
    """Whether its worker still opens its data."""
    broken: Exception | None = None
    """What would meet every job, and so is the run's."""


class Slot:
    """The actor. `opening` is the pickled `make_evaluate`, read once the import path is the controller's."""

    def __init__(self, opening: bytes, surroundings: Surroundings, threads: int, time_limit_s: float):
        surroundings.enter()
        self._lock = threading.Lock()
        self._left = False
        self._executor: ListeningExecutor[Any, Any, Any] = EXECUTORS.build(
            "local", pickle.loads(opening), workers=1, threads=threads, time_limit_s=time_limit_s
        )

    def place(self) -> Place:
        """Return where this is: an answer means that the slot has found a node."""
        return Place(socket.gethostname(), __version__)

    def work(self, key: str, job: Any, time_limit_s: float | None) -> Heard:
        """Begin `job`, and return its first news."""
        with self._lock:
            if self._left:
                return Heard()
            self._executor.submit(key, job, time_limit_s=time_limit_s)
        return self.hear()

    def hear(self) -> Heard:
        """Return as soon as there is news, or after a while."""
        began = time.monotonic()
        was_opening = self._executor.opening
        try:
            while True:
                with self._lock:
                    if self._left:
                        return Heard()
                    finished = self._executor.wait(_LOOK_S)
                    opening = self._executor.opening
                passed = time.monotonic() - began
                if finished or was_opening != opening or passed >= self._patience():
                    notes, notices = tuple(self._executor.take_notes()), tuple(self._executor.take_notices())
                    return Heard(tuple(finished), notes, notices, self._executor.take_progress(), opening)
        except (InputError, RunError) as error:
            return Heard(broken=error)

    def _patience(self) -> float:
        return _NEWS_S if self._executor.has_news else _LONGEST_SILENCE_S

    def leave(self) -> None:
        """Kill the worker and what it runs, at once; a call that waits meanwhile returns."""
        with self._lock:
            self._left = True
            self._executor.close()
