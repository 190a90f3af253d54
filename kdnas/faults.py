"""Named points at which the tests of faults have something go wrong. Nothing happens there otherwise.

    KDNAS_FAULTS="recorded=kill" KDNAS_FAULTS_FOLDER=/tmp/x kdnas search ... # killed once a trial is recorded
    KDNAS_FAULTS="trial:2=kill,report=full"                               # in the second trial; the disk is full

A fault happens once, when its point is reached for the given time (the first by default), counted over all processes
of a run by files in the folder: a process that is started in the place of a killed one goes on counting.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, NoReturn, get_args

Point = Literal[
    "teacher",
    "teacher epoch",
    "cache",
    "store",
    "prepared",
    "asked",
    "trial",
    "answer",
    "result",
    "recording",
    "writing",
    "recorded",
    "supernet",
    "blocks",
    "retraining",
    "retrained",
    "weights",
    "replacing",
    "report",
    "export",
    "epoch",
    "audit",
    "compare",
    "plan",
]
"""Where: a kept teacher is written, an epoch of it ends, its outputs are stored, a store has files and not
yet their name, the lock is written, a trial is asked
for, a worker begins a job, has its result, the controller takes it, writes it row by row, has recorded it; ..."""
POINTS: tuple[str, ...] = get_args(Point)


def reach(point: Point) -> None:
    """Be at `point`."""
    if planned := os.environ.get("KDNAS_FAULTS"):
        _meet(point, _read_plan(planned))


def _meet(point: str, plan: Collection[tuple[str, int, str]]) -> None:
    if point not in {named for named, _, _ in plan}:
        return
    folder = Path(os.environ.get("KDNAS_FAULTS_FOLDER", "."))
    with (folder / point.replace(" ", "-")).open("ab") as file:  # a byte each time; what is appended is never lost
        file.write(b".")
        file.flush()
        reached = os.fstat(file.fileno()).st_size
    for named, number, fault in plan:
        if (named, number) == (point, reached):
            FAULTS[fault]()


def _refuse(number: int) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise OSError(number, os.strerror(number))

    return refuse


def _signal(number: int, times: int = 1) -> Callable[[], None]:
    def send() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return send


def _kill_parent() -> None:
    parent = multiprocessing.parent_process()  # the process above a worker is what all workers are forked from
    os.kill(os.getppid() if parent is None or parent.pid is None else parent.pid, signal.SIGKILL)
    time.sleep(60)  # who watches for the parent ends this process


def _fill_disk() -> None:
    """Have whatever is written from now on meet a full disk: no file may grow past a few kilobytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _use_up_handles() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _exhaust_memory() -> NoReturn:
    raise MemoryError


def _jump(seconds: float) -> Callable[[], None]:
    def jump() -> None:
        now = time.time
        time.time = lambda: now() + seconds

    return jump


def _lose_database() -> NoReturn:
    from sqlalchemy.exc import OperationalError

    raise OperationalError("", None, Exception("the server closed the connection unexpectedly"))


FAULTS: Mapping[str, Callable[[], None]] = {
    "kill": _signal(signal.SIGKILL),
    "kill parent": _kill_parent,
    "term": _signal(signal.SIGTERM),
    "hup": _signal(signal.SIGHUP),
    "int": _signal(signal.SIGINT),
    "int twice": _signal(signal.SIGINT, 2),
    "stop": _signal(signal.SIGSTOP),
    "full": _fill_disk,
    "enospc": _refuse(errno.ENOSPC),
    "eio": _refuse(errno.EIO),
    "read-only": _refuse(errno.EROFS),
    "no handles": _use_up_handles,
    "memory": _exhaust_memory,
    "clock forward": _jump(3e7),
    "clock back": _jump(-3e7),
    "lost database": _lose_database,
}


def _read_plan(text: str) -> tuple[tuple[str, int, str], ...]:
    """Return (point, time, fault) of each fault that `text` names. Raises ValueError."""
    plan = []
    for entry in filter(None, text.split(",")):
        place, _, fault = entry.partition("=")
        point, _, number = place.partition(":")
        if point not in POINTS or fault not in FAULTS:
            raise ValueError(f"KDNAS_FAULTS: {entry!r} is no fault at a point")
        plan.append((point, int(number or 1), fault))
    return tuple(plan)
