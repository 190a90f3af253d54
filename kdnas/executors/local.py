"""Isolated worker processes on this machine: a crash, an endless loop or a full memory costs one trial only."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import operator
import os
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Annotated, Any

from pydantic import Field

from kdnas.executors import EXECUTORS, Evaluate, Finished, R, T
from kdnas.executors._listening import ListeningExecutor, Worker
from kdnas.executors._worker import answer, opened, uses_cuda, visible_device
from kdnas.outlets import open_outlets

_STOPS = (signal.SIGTERM, signal.SIGHUP)
_STOP_REACHES_ALL_S = 1.0
_DEAR = ("torch._dynamo", "kdnas.workshop.evaluators.distil")
"""What takes seconds to import, and workers inherit from a server that has done it once: torch with what its optimizers
want of it, and what trains."""
_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
_SERVER_GONE = 255
"""The exit code of a worker that nobody knows: what it was forked from died as well."""
_served: int | None = None
"""The process that has a server: a fork of it has none."""
_hiding = threading.Lock()


@dataclass(kw_only=True)
class _Worker(Worker[T]):
    index: int
    process: BaseProcess


@EXECUTORS.register
class Local(ListeningExecutor[T, R, _Worker[T]]):
    """Processes on this machine, one job at a time each, with an environment and memory of their own.

    Each worker has `threads` torch threads and, where there are CUDA devices, one of them in turn. A job that outlives
    `time_limit_s` is killed with its worker and reported as failed; so is one whose worker dies. A worker that has not
    opened data and teacher after `start_limit_s` is replaced.
    """

    def __init__(
        self,
        make_evaluate: Callable[[], Evaluate[T, R]],
        *,
        workers: Annotated[int, Field(ge=1)] = 1,
        threads: Annotated[int, Field(ge=1)] = 1,
        time_limit_s: Annotated[float, Field(gt=0)] = 3600.0,
        devices: Annotated[int, Field(ge=0)] = 0,
        start_limit_s: Annotated[float, Field(gt=0)] = 900.0,
    ):
        super().__init__(make_evaluate)
        self.start_limit_s = start_limit_s
        self._threads = threads
        self._time_limit_s = time_limit_s
        self._devices = devices
        self._context = _context()
        self._workers = [self._start(index) for index in range(workers)]
        self._closed = False

    @property
    def free(self) -> int:
        """The number of workers without a job."""
        return sum(worker.key is None for worker in self._workers)

    @property
    def running(self) -> int:
        """The number of workers with a job."""
        return sum(worker.key is not None for worker in self._workers)

    def submit(self, key: str, job: T, *, time_limit_s: float | None = None) -> None:
        """Hand `job` to a free worker. Raises RuntimeError when there is none."""
        idle = [index for index, worker in enumerate(self._workers) if worker.key is None]
        if not idle:
            raise RuntimeError("no worker is free")
        # A ready worker first: a fresh one still imports and opens the data.
        index = min(idle, key=lambda index: not self._workers[index].ready)
        worker = self._workers[index]
        if worker.ready and worker.connection is not None and worker.connection.poll():  # an idle one sends nothing
            self._replace(worker, "it died while it had no job")
            worker = self._workers[index]
        worker.key, worker.job = key, job
        worker.time_limit_s = self._time_limit_s if time_limit_s is None else time_limit_s
        self._send(worker)

    def _send(self, worker: _Worker[T]) -> None:
        worker.begin()
        assert worker.connection is not None
        with contextlib.suppress(OSError):  # the worker just died: `wait` reports it
            worker.connection.send(worker.job)

    def close(self) -> None:
        """Kill every worker."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            _kill(worker.process)
        for worker in self._workers:
            _bury(worker)

    def _crew(self) -> list[_Worker[T]]:
        return list(self._workers)

    def _finish(self, worker: _Worker[T]) -> None:
        worker.key, worker.job, worker.deadline = None, None, None

    def _hung_up(self, worker: _Worker[T]) -> list[Finished[R]]:
        worker.process.join(5)
        if worker.process.exitcode in [-number for number in _STOPS] or worker.process.exitcode == _SERVER_GONE:
            time.sleep(_STOP_REACHES_ALL_S)  # a cluster stops every process of a job, this one too: no trial failed
        return self._replace(worker, _death(worker.process.exitcode))

    def _overdue(self, worker: _Worker[T], reason: str) -> list[Finished[R]]:
        return self._replace(worker, reason)

    def _start(self, index: int) -> _Worker[T]:
        here, there = self._context.Pipe()
        device = index % self._devices if self._devices else None
        parts = (_Environment(), _StandardError(), there, self._make_evaluate, self._threads, device)
        process: BaseProcess
        try:
            process = _started(self._context, _serve, parts, f"kdnas-{index}")
        except (OSError, EOFError):  # what workers are forked from has died
            self._context = multiprocessing.get_context("spawn")
            process = _started(self._context, _serve, parts, f"kdnas-{index}")
        there.close()
        return _Worker(index=index, process=process, connection=here)

    def _replace(self, worker: _Worker[T], reason: str) -> list[Finished[R]]:
        """Put a new worker in the place of a dead one, and return the job it died of.

        A job that waited for a worker which could not even start is not to blame: the new worker gets it.
        """
        _kill(worker.process)
        _bury(worker)
        if not worker.ready:
            self._count_failed_start(reason)
        replacement = self._workers[worker.index] = self._start(worker.index)
        if worker.key is None:
            return []
        if worker.ready:
            return [Finished(worker.key, failure=reason)]
        replacement.key, replacement.job, replacement.time_limit_s = worker.key, worker.job, worker.time_limit_s
        self._send(replacement)
        return []


def _context() -> SpawnContext | ForkServerContext:
    """Return how workers are started: out of a server without threads that has imported what is dear, else anew.

    The server imports that only where this process has imported torch: a search of a table does not wait for it.
    """
    global _served
    anew = multiprocessing.get_context("spawn")
    if sys.platform != "linux" or _served not in (None, os.getpid()):
        return anew  # elsewhere than on Linux a fork of what has imported torch may crash
    if "torch" in sys.modules:
        multiprocessing.set_forkserver_preload([*_DEAR])
    served = multiprocessing.get_context("forkserver")
    try:
        with _held({signal.SIGINT}):  # as workers begin: a terminal's Ctrl-C ends none in the middle of an import
            multiprocessing.forkserver.ensure_running()
        with _main_hidden():
            first = served.Process(target=int, daemon=True)
            first.start()  # waits until the server has imported, and may be interrupted meanwhile
        first.join()
    except (OSError, EOFError):  # it died, or it is that of the process which this one is a fork of
        return anew
    _served = os.getpid()
    return served


def _started(
    context: SpawnContext | ForkServerContext, target: Callable[..., None], parts: tuple[Any, ...], name: str
) -> BaseProcess:
    process = context.Process(target=target, args=parts, name=name, daemon=True)
    with _held({signal.SIGINT, *_STOPS}), _main_hidden():
        process.start()
    return process


@dataclass(frozen=True)
class _Inherited:
    """What a process has of the one that starts it, had it not been forked from a server of an earlier search."""

    variables: Mapping[str, str]
    umask: int
    niceness: int
    limits: Mapping[int, tuple[int, int]]

    @classmethod
    def here(cls) -> _Inherited:
        """Return that of this process."""
        umask = os.umask(0o077)
        os.umask(umask)
        limits = {number: resource.getrlimit(number) for number in _LIMITS}
        return cls(dict(os.environ), umask, os.getpriority(os.PRIO_PROCESS, 0), limits)

    def enter(self) -> None:
        """Have this process so, as far as it may: a priority and limits that were lowered are not raised by all."""
        os.environ.clear()
        os.environ.update(self.variables)
        time.tzset()
        os.umask(self.umask)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, self.niceness)
        for number, limit in self.limits.items():
            if limit != resource.getrlimit(number):
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(number, limit)


class _Environment:
    """That of the process which starts a worker: the worker's own as soon as it reads this, before what follows.

    To read a plug-in's class, say, takes to know which plug-ins may run.
    """

    def __reduce__(self) -> tuple[Callable[[_Inherited], None], tuple[_Inherited]]:
        return _Inherited.enter, (_Inherited.here(),)


class _StandardError:
    """That of the process which starts a worker: a file descriptor once the worker has it."""

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return operator.methodcaller("detach"), (DupFd(2),)


@contextlib.contextmanager
def _held(signals: Collection[int]) -> Iterator[None]:
    """Hold `signals` back while a process is started, which inherits that. The controller's own are only delayed."""
    multiprocessing.resource_tracker.ensure_running()  # started within, it would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Let a process start without running the program's main module again, which a worker needs nothing of.

    So a script or a notebook may search at its top level, as nobody expects otherwise of a function call.
    """
    with _hiding:  # searches may run in threads
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _kill(process: BaseProcess) -> None:
    """Kill a worker and the processes that its user's code started, which outlive a worker that died alone."""
    process.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)


def _bury(worker: _Worker[Any]) -> None:
    """Take leave of a worker that was killed."""
    worker.process.join()
    if worker.connection is not None:
        worker.connection.close()


def _death(exit_code: int | None) -> str:
    if exit_code == _SERVER_GONE:
        return "the worker process died, and so did the process that it was forked from"
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (often the kernel's answer to a full memory)" if name == "SIGKILL" else ""
        return f"the worker process was killed by {name}{hint}"
    return f"the worker process died with exit code {exit_code}"


def _serve(
    environment: None,
    errors: int,
    pipe: Connection,
    make_evaluate: Callable[[], Evaluate[Any, Any]],
    threads: int,
    device: int | None,
) -> None:
    """Run in the worker: open once, then answer jobs until the controller is gone."""
    os.dup2(errors, 2)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed()  # that of the server is every worker's: what a user's code draws without a seed would be one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    os.setpgid(0, 0)  # a group of its own, with all that it starts: they end together
    multiprocessing.current_process().daemon = False  # a daemon may start no process, as a DataLoader does
    _leave_with_parent()
    os.dup2(2, 1)  # standard output is the controller's too: what a user's module prints goes to the errors
    open_outlets()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(device, os.environ.get("CUDA_VISIBLE_DEVICES"))
    evaluate = opened(pipe, make_evaluate, threads)
    if evaluate is None:
        return
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        kind, content = answer(evaluate, job)
        pipe.send((kind, content))
        if kind == "broken" or (kind == "crash" and uses_cuda()):
            return  # a CUDA error spoils every later call of its process: a new one goes on


def _leave_with_parent() -> None:
    """End this process as soon as the controller dies, however it dies, so that no orphan trains on."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
