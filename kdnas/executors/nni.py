"""Evaluations as trials of a real NNI experiment on this machine, for those who live in NNI."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing.connection
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Generic

from pydantic import Field

from kdnas.errors import RunError
from kdnas.executors import EXECUTORS, Evaluate, Executor, Finished, R, T
from kdnas.executors._nni_experiment import Ended, Experiment, Scratch

_START_FAILURES_ALLOWED = 3
_LOOK_S = 0.2
"""How often NNI is asked what has ended."""
_EXPLANATION_S = 5.0
"""How long after a process has died NNI may take to say of what."""


@dataclass
class _Trial(Generic[T]):
    key: str
    job: T
    time_limit_s: float
    place: int
    """Which of the workers' places it has: it decides the device."""
    pid: int = 0
    connection: Connection | None = None
    ready: bool = False
    """Whether it has opened its data; until then what it dies of is no job's fault."""
    deadline: float | None = None
    died: float | None = None
    """When its connection ended. Both are on the monotonic clock."""


@EXECUTORS.register
class Nni(Executor[T, R]):
    """Trials of an NNI experiment on this machine, one process each, with NNI's web page on the loopback address.

    A trial opens its data anew, a few seconds each. Up to `workers` run at a time, each with `threads` torch threads
    and, where there are CUDA devices, one of them in turn. `port` 0 is any that is free. NNI's files go to `folder`;
    None is a temporary one that is removed at the end. Raises ConfigError (a port that is taken), RunError (NNI does
    not start).
    """

    def __init__(
        self,
        make_evaluate: Callable[[], Evaluate[T, R]],
        *,
        workers: Annotated[int, Field(ge=1)] = 1,
        threads: Annotated[int, Field(ge=1)] = 1,
        time_limit_s: Annotated[float, Field(gt=0)] = 3600.0,
        devices: Annotated[int, Field(ge=0)] = 0,
        port: Annotated[int, Field(ge=0, le=65535)] = 0,
        folder: str | None = None,
    ):
        super().__init__(make_evaluate)
        self._threads = threads
        self._time_limit_s = time_limit_s
        self._devices = devices
        self._places = set(range(workers))
        self._trials: dict[int, _Trial[T]] = {}
        """By the number that NNI knows them by."""
        self._numbers = itertools.count()
        self._greeting: list[Connection] = []
        self._start_failures = 0
        self._closed = False
        self._server = socket.socket(socket.AF_UNIX)
        with contextlib.ExitStack() as undo:
            undo.callback(self._server.close)
            self._scratch = Scratch()
            undo.callback(self._scratch.remove)
            address = self._scratch.path / "socket"
            files = Path(folder).expanduser().resolve() if folder is not None else self._scratch.path
            command = shlex.join(["exec", sys.executable, "-m", "kdnas.executors._nni_trial", str(address)])
            try:
                self._server.bind(str(address))
                self._server.listen(workers + 8)
                self._experiment = Experiment(
                    "kdnas",
                    scratch=self._scratch.path,
                    files=files,
                    port=port,
                    concurrency=workers,
                    command=command,
                )
            except (OSError, ImportError) as error:
                raise RunError(f"NNI's experiment did not start: {error}") from error
            undo.pop_all()

    @property
    def notice(self) -> str:
        """The experiment's id and the address of its page."""
        return self._experiment.description

    @property
    def free(self) -> int:
        """The number of trials that NNI would start now."""
        return len(self._places)

    @property
    def running(self) -> int:
        """The number of trials handed out and not yet ended."""
        return len(self._trials)

    def submit(self, key: str, job: T, *, time_limit_s: float | None = None) -> None:
        """Hand `job` to NNI. Raises RuntimeError when as many as there are workers run, RunError when NNI is gone."""
        if not self._places:
            raise RuntimeError("no worker is free")
        limit_s = self._time_limit_s if time_limit_s is None else time_limit_s
        self._propose(_Trial(key, job, limit_s, self._places.pop()))

    def _propose(self, trial: _Trial[T]) -> None:
        number = next(self._numbers)
        self._trials[number] = trial
        self._experiment.propose(number, {"trial": trial.key, **_shown(trial.job.as_dict())})

    def wait(self, timeout_s: float) -> list[Finished[R]]:
        """Return the jobs that ended within `timeout_s`, at least one if any does. Raises RunError when NNI is gone."""
        end = time.monotonic() + timeout_s
        finished: list[Finished[R]] = []
        while not finished:
            pause = max(min(end - time.monotonic(), _LOOK_S), 0.0)
            talking = {trial.connection: number for number, trial in self._trials.items() if trial.connection}
            for ready in multiprocessing.connection.wait([self._server, *self._greeting, *talking], pause):
                if ready is self._server:
                    self._greeting.append(Connection(self._server.accept()[0].detach()))
                elif ready in talking:
                    finished += self._receive(talking[ready])
                elif isinstance(ready, Connection):
                    self._greet(ready)
            finished += self._overdue()
            for ended in self._ended():
                finished += self._explain(ended)
            if time.monotonic() >= end:
                break
        return finished

    def close(self) -> None:
        """Kill every trial and NNI's manager."""
        if self._closed:
            return
        self._closed = True
        self._experiment.stop()
        for connection in [*self._greeting, *(trial.connection for trial in self._trials.values())]:
            if connection is not None:
                connection.close()
        self._server.close()
        self._scratch.remove()

    def _greet(self, connection: Connection) -> None:
        """Hand its job to a process that says which trial it is; to one that nobody knows, nothing."""
        self._greeting.remove(connection)
        try:
            number, pid = connection.recv()
            trial = self._trials.get(number)
            if trial is None or trial.connection is not None:
                connection.close()
                return
            device = trial.place % self._devices if self._devices else None
            connection.send({"path": sys.path, "threads": self._threads, "device": device})
            connection.send((self._make_evaluate, trial.job))
        except (EOFError, OSError):
            connection.close()
            return
        trial.connection, trial.pid = connection, pid

    def _receive(self, number: int) -> list[Finished[R]]:
        trial = self._trials[number]
        assert trial.connection is not None
        try:
            kind, content = trial.connection.recv()
        except (EOFError, OSError):
            trial.connection.close()
            trial.connection, trial.deadline, trial.died = None, None, time.monotonic()
            return []
        if kind == "ready":
            trial.ready, self._start_failures = True, 0
            trial.deadline = time.monotonic() + trial.time_limit_s
            return []
        if kind == "broken":
            self.close()
            raise content
        self._forget(number)
        return [Finished(trial.key, result=content) if kind == "result" else Finished(trial.key, failure=content)]

    def _overdue(self) -> list[Finished[R]]:
        finished: list[Finished[R]] = []
        for number, trial in list(self._trials.items()):
            if trial.deadline is not None and time.monotonic() >= trial.deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(trial.pid, signal.SIGKILL)
                self._forget(number)
                reason = f"stopped at the time limit of {trial.time_limit_s:g} s"
                finished.append(Finished(trial.key, failure=reason))
        return finished

    def _ended(self) -> list[Ended]:
        """Return the trials whose process is gone, from NNI or, where it says nothing, after a while from here."""
        try:
            ended = self._experiment.ended()
        except RunError:
            self.close()
            raise
        told = {trial.number for trial in ended}
        silent = time.monotonic() - _EXPLANATION_S
        return ended + [
            Ended(number, "", "")
            for number, trial in self._trials.items()
            if trial.died is not None and trial.died < silent and number not in told
        ]

    def _explain(self, ended: Ended) -> list[Finished[R]]:
        """Return the job that died with its process. One that had not even started is handed out again."""
        trial = self._trials.get(ended.number)
        while trial is not None and trial.connection is not None and trial.connection.poll():
            if finished := self._receive(ended.number):  # it had told its outcome before it ended
                return finished
        if trial is None:
            return []
        reason = _death(ended)
        if trial.ready:
            self._forget(ended.number)
            return [Finished(trial.key, failure=reason)]
        self._start_failures += 1
        if self._start_failures >= _START_FAILURES_ALLOWED:
            self.close()
            raise RunError(f"{self._start_failures} trials in a row could not start; the last: {reason}")
        del self._trials[ended.number]
        self._propose(_Trial(trial.key, trial.job, trial.time_limit_s, trial.place))
        return []

    def _forget(self, number: int) -> None:
        trial = self._trials.pop(number)
        self._places.add(trial.place)
        if trial.connection is not None:
            trial.connection.close()


def _death(ended: Ended) -> str:
    if ended.status == "USER_CANCELED":
        return "the trial's process was killed: from NNI's page, or by the kernel, often its answer to a full memory"
    words = f"; its last words: {ended.last_words}" if ended.last_words else ""
    return f"the trial's process ended before it had answered{words}"


def _shown(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job's settings for NNI's page, one dotted name each: what is a mapping, or the JSON text of one."""
    shown: dict[str, Any] = {}
    for name, value in job.items():
        inner = value
        if isinstance(value, str):
            with contextlib.suppress(json.JSONDecodeError):
                inner = json.loads(value)
        if isinstance(inner, Mapping):
            shown |= {f"{name}.{key}": known for key, known in _shown(inner).items()}
        elif value is not None:
            shown[name] = value
    return shown
