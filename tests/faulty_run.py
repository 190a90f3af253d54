"""The command line in a forked process that meets faults at named points (`kdnas.faults`), and what is left of it."""

from __future__ import annotations

import csv
import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import scored_study
from processes import living

_PATIENCE_S = 120.0
_TIMES = {"trial", "train_seconds", "teacher_seconds", "started", "ended", "seconds", "reason"}
"""Columns that a kill may change: a trial that is run again has another number."""
LOGGED = """\
from pathlib import Path

LOG = Path(__file__).with_name("calls.txt")


def score(choices, epochs, data_fraction, seed):
    with LOG.open("a") as log:
        log.write(f"{choices['a']} {choices['b']} {epochs} {seed}\\n")
    return {"accuracy": 1 - 1 / (1 + choices["a"] + choices["b"])}


def price(choices):
    return {"macs": 1000 * (choices["a"] + choices["b"])}
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, minus the signal where one killed it, and what it wrote."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Going:
    """A command that goes on, in a session of its own."""

    pid: int
    outlets: tuple[int, int]

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped itself."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), status

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> Ended:
        """Wait for its end, and see that none of its processes is left."""
        texts = [_read_all(outlet) for outlet in self.outlets]
        _, status = os.waitpid(self.pid, 0)
        deadline = time.monotonic() + _PATIENCE_S
        while left := processes_of(self.pid):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.02)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, *texts)


Outlet = Literal["read", "full", "closed", "left"]
"""Who takes standard output: this process, a full disk, nobody since it is closed, nobody any more."""


def begin(
    *arguments: Any, faults: str = "", counts: Path | None = None, inline: bool = True, stdout: Outlet = "read"
) -> Going:
    """Begin `kdnas ARGUMENTS` in a fork; `faults` are counted in the folder `counts`.

    With `inline` a search answers its jobs itself; else its workers meet the faults too.
    """
    _import_all()
    outlets = [os.pipe() for _ in range(2)]
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for number, (_, there) in enumerate(outlets, 1):
                os.dup2(there, number)
            if stdout == "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            elif stdout == "left":
                _, there = os.pipe()
                os.dup2(there, 1)
            os.closerange(3, 256)
            _run([str(argument) for argument in arguments], faults, counts, inline, stdout == "closed")
        finally:
            os._exit(70)
    for _, there in outlets:
        os.close(there)
    return Going(pid, (outlets[0][0], outlets[1][0]))


@functools.cache
def _import_all() -> None:
    """Import what a search needs: a fork then has it at once."""
    for name in ("session", "report.page", "audit.auditing", "plan.training", "samplers.random", "exporters"):
        importlib.import_module(f"kdnas.{name}")


def run(*arguments: Any, **options: Any) -> Ended:
    """Run `kdnas ARGUMENTS` to its end, as `begin` does."""
    return begin(*arguments, **options).end()


def _run(arguments: Sequence[str], faults: str, counts: Path | None, inline: bool, closed: bool) -> None:
    """Be the command. Does not return."""
    import kdnas.audit.auditing
    import kdnas.audit.comparing
    import kdnas.controller.runner
    from kdnas.cli import main

    os.environ.update(NO_COLOR="1", COLUMNS="120", TERM="dumb", KDNAS_FAULTS=faults)
    if faults:
        assert counts is not None
        counts.mkdir(exist_ok=True)
        os.environ["KDNAS_FAULTS_FOLDER"] = str(counts)
    if inline:
        for module in (kdnas.controller.runner, kdnas.audit.auditing, kdnas.audit.comparing):
            module.start_executor = lambda opened, observe: scored_study.Inline(opened.workplan)  # type: ignore[attr-defined]
    sys.stdin = Path(os.devnull).open()  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    if closed:  # as a program finds it that was begun so
        os.close(1)
        sys.stdout = None
    sys.stderr = open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    code = 70
    try:
        main.run(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _read_all(descriptor: int) -> str:
    with open(descriptor, "rb") as file:
        return file.read().decode("utf-8", "replace")


def processes_of(session: int) -> list[int]:
    """Return the processes of a session that live."""
    return [one.pid for one in living() if one.session == session]


def table(folder: Path, name: str = "trials.csv") -> list[tuple[str, ...]]:
    """Return the rows of a run's table that are results, without what a kill may change."""
    rows = list(csv.DictReader((folder / name).read_text().splitlines()))
    return [
        tuple(value for key, value in row.items() if key not in _TIMES and not key.endswith("_seconds"))
        for row in rows
        if row.get("state", "complete") != "interrupted"
    ]


def age(folder: Path) -> None:
    """Let a minute pass over what killed processes left in a run folder."""
    for path in (*folder.glob(".*.*"), *folder.glob("*/.*.*")):
        os.utime(path, (time.time() - 60,) * 2)


def calls(study: Path) -> list[str]:
    """Return what the study's function was called with, one after the other."""
    path = study / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []
