"""Isolated worker processes on this machine: a crash, an endless loop or a full memory costs one trial only."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Annotated, Any, Generic

from pydantic import Field

from kdnas.errors import InputError, RunError
from kdnas.executors import EXECUTORS, Evaluate, Executor, Finished, R, T
from kdnas.executors._worker import answer, limit_threads, uses_cuda, visible_device
from kdnas.outlets import open_outlets

_START_FAILURES_ALLOWED = 3
_STOPS = (signal.SIGTERM, signal.SIGHUP)
_STOP_REACHES_ALL_S = 1.0


@dataclass
class _Worker(Generic[T]):
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    """Whether it has opened its data; until then what it dies of is no job's fault."""
    key: str | None = None
    job: T | None = None
    time_limit_s: float = 0.0
    deadline: float | None = None
    """On the monotonic clock; None while no job runs."""


@EXECUTORS.register
class Local(Executor[T, R]):
    """Spawned processes on this machine, one job at a time each.

    Each worker has `threads` torch threads and, where there are CUDA devices, one of them in turn. A job that outlives
    `time_limit_s` is killed with its worker and reported as failed; so is one whose worker dies.
    """

    def __init__(
        self,
        make_evaluate: Callable[[], Evaluate[T, R]],
        *,
        workers: Annotated[int, Field(ge=1)] = 1,
        threads: Annotated[int, Field(ge=1)] = 1,
        time_limit_s: Annotated[float, Field(gt=0)] = 3600.0,
        devices: Annotated[int, Field(ge=0)] = 0,
    ):
        super().__init__(make_evaluate)
        self._threads = threads
        self._time_limit_s = time_limit_s
        self._devices = devices
        self._context = multiprocessing.get_context("spawn")
        self._start_failures = 0
        self._notes: list[str] = []
        self._progress: dict[str, float] = {}
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
        if worker.ready and worker.pipe.poll():  # an idle worker says nothing: this one has died
            self._replace(index, "it died while it had no job")
            worker = self._workers[index]
        worker.key, worker.job = key, job
        worker.time_limit_s = self._time_limit_s if time_limit_s is None else time_limit_s
        self._send(worker)

    def _send(self, worker: _Worker[T]) -> None:
        worker.deadline = time.monotonic() + worker.time_limit_s if worker.ready else None
        with contextlib.suppress(OSError):  # the worker just died: `wait` sees it
            worker.pipe.send(worker.job)

    def wait(self, timeout_s: float) -> list[Finished[R]]:
        """Return the jobs that ended within `timeout_s`, at least one if any does."""
        end = time.monotonic() + timeout_s
        finished: list[Finished[R]] = []
        while not finished:
            deadlines = [worker.deadline for worker in self._workers if worker.deadline is not None]
            pause = max(min([end, *deadlines]) - time.monotonic(), 0.0)
            signalled = multiprocessing.connection.wait([worker.pipe for worker in self._workers], pause)
            for index, worker in enumerate(self._workers):
                if worker.pipe in signalled:
                    finished += self._receive(index)
                elif worker.deadline is not None and time.monotonic() >= worker.deadline:
                    finished += self._replace(index, f"stopped at the time limit of {worker.time_limit_s:g} s")
            if time.monotonic() >= end:
                break
        return finished

    def take_notes(self) -> list[str]:
        """Return the passing lines that workers said since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def take_progress(self) -> dict[str, float]:
        """Return how far running jobs have come since the last call, by key."""
        progress, self._progress = self._progress, {}
        return progress

    def close(self) -> None:
        """Kill every worker."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            _kill(worker.process)
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def _start(self, index: int) -> _Worker[T]:
        here, there = self._context.Pipe()
        device = index % self._devices if self._devices else None
        process = self._context.Process(
            target=_serve, args=(there, self._make_evaluate, self._threads, device), name=f"kdnas-{index}", daemon=True
        )
        with _interrupts_held(), _main_hidden():
            process.start()
        there.close()
        return _Worker(process, here)

    def _receive(self, index: int) -> list[Finished[R]]:
        worker = self._workers[index]
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            if worker.process.exitcode in [-number for number in _STOPS]:
                time.sleep(_STOP_REACHES_ALL_S)  # a cluster stops every process of a job, this one too: no trial failed
            return self._replace(index, _death(worker.process.exitcode))
        if kind == "ready":
            worker.ready, self._start_failures = True, 0
            if worker.key is not None:
                worker.deadline = time.monotonic() + worker.time_limit_s
            return []
        if kind == "note":
            self._notes.append(content)
            return []
        if kind == "progress":
            if worker.key is not None:
                self._progress[worker.key] = content
            return []
        if kind == "broken":
            self.close()
            raise content
        key, worker.key, worker.job, worker.deadline = worker.key, None, None, None
        assert key is not None
        return [Finished(key, result=content) if kind == "result" else Finished(key, failure=content)]

    def _replace(self, index: int, reason: str) -> list[Finished[R]]:
        """Put a new worker in the place of a dead one, and return the job it died of.

        A job that waited for a worker which could not even start is not to blame: the new worker gets it.
        """
        worker = self._workers[index]
        _kill(worker.process)
        worker.process.join()
        worker.pipe.close()
        if not worker.ready:
            self._start_failures += 1
            if self._start_failures >= _START_FAILURES_ALLOWED:
                self.close()
                raise RunError(f"{self._start_failures} workers in a row could not start; the last: {reason}")
        replacement = self._workers[index] = self._start(index)
        if worker.key is None:
            return []
        if worker.ready:
            return [Finished(worker.key, failure=reason)]
        replacement.key, replacement.job, replacement.time_limit_s = worker.key, worker.job, worker.time_limit_s
        self._send(replacement)
        return []


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back what asks to stop while a process is started: the child inherits that, and a terminal's Ctrl-C, which
    reaches it too, does not end it in the middle of an import. The controller's own is only delayed.
    """
    multiprocessing.resource_tracker.ensure_running()  # started within `start`, it would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_STOPS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Let a process start without running the program's main module again, which a worker needs nothing of.

    So a script or a notebook may search at its top level, as nobody expects otherwise of a function call.
    """
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


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (often the kernel's answer to a full memory)" if name == "SIGKILL" else ""
        return f"the worker process was killed by {name}{hint}"
    return f"the worker process died with exit code {exit_code}"


def _serve(pipe: Connection, make_evaluate: Callable[[], Evaluate[Any, Any]], threads: int, device: int | None) -> None:
    """Run in the worker: open once, then answer jobs until the controller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    os.setpgid(0, 0)  # a group of its own, with all that it starts: they end together
    multiprocessing.current_process().daemon = False  # a daemon may start no process, as a DataLoader does
    _leave_with_parent()
    os.dup2(2, 1)  # standard output is the controller's too: what a user's module prints goes to the errors
    open_outlets()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(device, os.environ.get("CUDA_VISIBLE_DEVICES"))
    limit_threads(threads)
    try:
        evaluate = make_evaluate()
    except (InputError, RunError) as error:
        pipe.send(("broken", error))
        return
    limit_threads(threads)  # of what it has imported
    if hasattr(evaluate, "say"):
        evaluate.say = lambda line: pipe.send(("note", line))
    if hasattr(evaluate, "progress"):
        evaluate.progress = lambda share: pipe.send(("progress", share))
    pipe.send(("ready", None))
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
