"""The one loop that waits for workers, and those that talk over connections: whoever starts them, in the same words.

A worker sends `ready` once it has opened its data, then of each job its passing notes, how far it is, and its end
(`kdnas.executors._worker`). What it dies of before it is ready is no job's fault.
"""

from __future__ import annotations

import math
import multiprocessing.connection
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Generic, TypeVar

from kdnas.errors import RunError
from kdnas.executors import Evaluate, Executor, Finished, R, T

_START_FAILURES_ALLOWED = 3
_START_NOTICE_S = 60.0
"""How often a worker that is not ready yet is reported."""


@dataclass(kw_only=True)
class Worker(Generic[T]):
    """A process that works, or is about to, and the job that it has."""

    connection: Connection | None = None
    """None before it has called, and once it has hung up."""
    ready: bool = False
    key: str | None = None
    job: T | None = None
    time_limit_s: float = 0.0
    deadline: float | None = None
    """On the monotonic clock; None while nothing runs."""
    started: float = field(default_factory=time.monotonic)
    noticed_s: float = 0.0
    """Seconds after its start of its last report that it is not ready."""

    def begin(self) -> None:
        """Let the time of its job run, once it is ready for one."""
        self.deadline = time.monotonic() + self.time_limit_s if self.ready and self.key is not None else None


W = TypeVar("W", bound=Worker[Any])


class NewsExecutor(Executor[T, R]):
    """An executor that waits round by round, and keeps what its workers say meanwhile."""

    def __init__(self, make_evaluate: Callable[[], Evaluate[T, R]]):
        super().__init__(make_evaluate)
        self._notes: list[str] = []
        self._notices: list[str] = []
        self._progress: dict[str, float] = {}

    @property
    def has_news(self) -> bool:
        """Whether lines or progress wait to be taken."""
        return bool(self._notes or self._notices or self._progress)

    @abstractmethod
    def _round(self, pause_s: float) -> list[Finished[R]]:
        """Wait up to `pause_s` for something to happen, see to it, and return the jobs that ended."""

    def wait(self, timeout_s: float) -> list[Finished[R]]:
        """Return the jobs that ended within `timeout_s`, at least one if any does.

        Raises RunError where workers cannot start any more, and what broke the run in one of them.
        """
        end = time.monotonic() + timeout_s
        while True:
            finished = self._round(max(end - time.monotonic(), 0.0))
            if finished or time.monotonic() >= end:
                return finished

    def take_notes(self) -> list[str]:
        """Return the passing lines that workers sent since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def take_notices(self) -> list[str]:
        """Return what the user should know of the workers since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def take_progress(self) -> dict[str, float]:
        """Return how far running jobs have come since the last call, by key."""
        progress, self._progress = self._progress, {}
        return progress


class ListeningExecutor(NewsExecutor[T, R], Generic[T, R, W]):
    """An executor that listens to the connections of its workers, each a W."""

    called: ClassVar[str] = "workers"
    """What messages call its processes."""
    start_limit_s: float = 900.0
    """Seconds after which a worker that is not ready is given up."""
    look_s: ClassVar[float] = math.inf
    """How often `_look` is called at least, in seconds."""

    def __init__(self, make_evaluate: Callable[[], Evaluate[T, R]]):
        super().__init__(make_evaluate)
        self._start_failures = 0

    @property
    def opening(self) -> bool:
        """Whether a worker is not ready yet: it starts, or opens its data."""
        return any(not worker.ready for worker in self._crew())

    @abstractmethod
    def _crew(self) -> Sequence[W]:
        """Return the workers that there are."""

    @abstractmethod
    def _finish(self, worker: W) -> None:
        """Take its job, which has ended, from `worker`."""

    @abstractmethod
    def _hung_up(self, worker: W) -> list[Finished[R]]:
        """Return what came of the job of `worker`, whose connection ended; nothing where that is not known yet."""

    @abstractmethod
    def _overdue(self, worker: W, reason: str) -> list[Finished[R]]:
        """Kill `worker`, whose job has run too long, and return that job."""

    def _doors(self) -> Iterable[Any]:
        """Return what else may be ready to be read, and is then handed to `_look`."""
        return ()

    def _look(self, ready: Sequence[Any]) -> list[Finished[R]]:
        """Return the jobs whose end is seen elsewhere than on a connection."""
        return []

    def _round(self, pause_s: float) -> list[Finished[R]]:
        crew, now = self._crew(), time.monotonic()
        pauses = [pause_s, self.look_s, *(w.deadline - now for w in crew if w.deadline is not None)]
        connections = [worker.connection for worker in crew if worker.connection is not None]
        ready = multiprocessing.connection.wait([*self._doors(), *connections], max(min(pauses), 0.0))
        finished: list[Finished[R]] = []
        for worker in crew:
            if worker.connection in ready:
                finished += self._hear(worker)
            elif worker.deadline is not None and time.monotonic() >= worker.deadline:
                finished += self._overdue(worker, f"stopped at the time limit of {worker.time_limit_s:g} s")
            elif not worker.ready and worker.connection is not None:
                finished += self._await_start(worker)
        return finished + self._look(ready)

    def _hear(self, worker: W) -> list[Finished[R]]:
        """Take in one word of `worker`, and return its job where that ended it."""
        assert worker.connection is not None
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            return self._hung_up(worker)
        if kind == "ready":
            worker.ready, self._start_failures = True, 0
            worker.begin()
        elif kind == "note":
            self._notes.append(content)
        elif kind == "progress":
            if worker.key is not None:
                self._progress[worker.key] = content
        elif kind == "broken":
            self.close()
            raise content
        else:
            key = worker.key
            assert key is not None
            self._finish(worker)
            return [Finished(key, result=content) if kind == "result" else Finished(key, failure=content)]
        return []

    def _await_start(self, worker: W) -> list[Finished[R]]:
        """Tell now and then of a worker that is not ready, which is given up in the end."""
        waited = time.monotonic() - worker.started
        if waited > self.start_limit_s:
            return self._overdue(worker, f"it was not ready after {self.start_limit_s:g} s")
        if waited > worker.noticed_s + _START_NOTICE_S:
            worker.noticed_s += _START_NOTICE_S
            left = f"at {self.start_limit_s:g} s another takes its place"
            self._notices.append(f"a worker has been opening data and teacher for {waited:.0f} s; {left}")
        return []

    def _count_failed_start(self, reason: str) -> None:
        """Raise RunError where too many workers in a row have died before they were ready, the last for `reason`."""
        self._start_failures += 1
        if self._start_failures >= _START_FAILURES_ALLOWED:
            self.close()
            raise RunError(f"{self._start_failures} {self.called} in a row could not start; the last: {reason}")
        self._notices.append(f"a worker could not start, and another takes its place: {reason}")
