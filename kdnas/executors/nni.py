"""Evaluations as trials of a real NNI experiment on this machine, for those who live in NNI."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdnas.errors import RunError
from kdnas.executors import EXECUTORS, Evaluate, Finished, R, T
from kdnas.executors._listening import ListeningExecutor, Worker
from kdnas.executors._nni_experiment import Ended, Experiment
from kdnas.executors._scratch import Scratch

_EXPLANATION_S = 5.0
"""How long NNI may take to report why a process died."""
_LONGEST_PLACE = 70
"""Characters of the temporary folder's path, so that a socket in it has a path of at most 107 (the system's limit)."""


@dataclass(kw_only=True)
class _Trial(Worker[T]):
    number: int
    """NNI's name for it."""
    place: int
    """Which of the workers' places it has: it decides the device."""
    pid: int = 0
    died: float | None = None
    """When its connection ended, on the monotonic clock."""


@EXECUTORS.register
class Nni(ListeningExecutor[T, R, _Trial[T]]):
    """Trials of an NNI experiment on this machine, one process each, with NNI's web page on the loopback address.

    A trial opens its data anew, a few seconds each. Up to `workers` run at a time, each with `threads` torch threads
    and, where there are CUDA devices, one of them in turn. `port` 0 is any that is free. NNI's files go to `folder`;
    None is a temporary one that is removed at the end. Raises ConfigError (a port that is taken), RunError (NNI does
    not start).
    """

    called = "trials"
    look_s = 0.2

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
        """By number."""
        self._numbers = itertools.count()
        self._greeting: list[Connection] = []
        self._closed = False
        self._server = socket.socket(socket.AF_UNIX)
        with contextlib.ExitStack() as undo:
            undo.callback(self._server.close)
            self._scratch = Scratch("kdnas-nni-", _LONGEST_PLACE)
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
        self._propose(key, job, limit_s, self._places.pop())

    def _propose(self, key: str, job: T, time_limit_s: float, place: int) -> None:
        number = next(self._numbers)
        self._trials[number] = _Trial(key=key, job=job, time_limit_s=time_limit_s, number=number, place=place)
        self._experiment.propose(number, {"trial": key, **_shown(job.as_dict())})

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

    def _crew(self) -> list[_Trial[T]]:
        return list(self._trials.values())

    def _doors(self) -> list[Any]:
        return [self._server, *self._greeting]

    def _look(self, ready: Sequence[Any]) -> list[Finished[R]]:
        """Let processes in that call, and return the jobs that NNI has seen the end of."""
        for caller in [connection for connection in self._greeting if connection in ready]:
            self._greet(caller)
        if self._server in ready:
            self._greeting.append(Connection(self._server.accept()[0].detach()))
        return [finished for ended in self._ended() for finished in self._explain(ended)]

    def _greet(self, connection: Connection) -> None:
        """Send a process the job of the trial that it names; to an unknown one, nothing."""
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

    def _finish(self, worker: _Trial[T]) -> None:
        self._forget(worker)

    def _hung_up(self, worker: _Trial[T]) -> list[Finished[R]]:
        assert worker.connection is not None
        worker.connection.close()
        worker.connection, worker.deadline, worker.died = None, None, time.monotonic()
        return []  # NNI reports why it died

    def _overdue(self, worker: _Trial[T], reason: str) -> list[Finished[R]]:
        assert worker.key is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        self._forget(worker)
        return [Finished(worker.key, failure=reason)]

    def _ended(self) -> list[Ended]:
        """Return the trials whose process is gone, from NNI or, where it reports nothing, after a while from here."""
        try:
            ended = self._experiment.ended()
        except RunError:
            self.close()
            raise
        reported = {trial.number for trial in ended}
        silent = time.monotonic() - _EXPLANATION_S
        return ended + [
            Ended(number, "", "")
            for number, trial in self._trials.items()
            if trial.died is not None and trial.died < silent and number not in reported
        ]

    def _explain(self, ended: Ended) -> list[Finished[R]]:
        """Return the job that died with its process. One that had not even started is handed out again."""
        trial = self._trials.get(ended.number)
        while trial is not None and trial.connection is not None and trial.connection.poll():
            if finished := self._hear(trial):  # it had sent its outcome before it ended
                return finished
        if trial is None:
            return []
        assert trial.key is not None
        assert trial.job is not None
        reason = _death(ended)
        if trial.ready:
            self._forget(trial)
            return [Finished(trial.key, failure=reason)]
        self._count_failed_start(reason)
        del self._trials[ended.number]
        self._propose(trial.key, trial.job, trial.time_limit_s, trial.place)
        return []

    def _forget(self, trial: _Trial[T]) -> None:
        del self._trials[trial.number]
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
