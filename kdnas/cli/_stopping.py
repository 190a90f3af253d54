"""Signals to stop: SIGTERM (a cluster's stop) and SIGHUP (a closed terminal) end a command as Ctrl-C does."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_INTERRUPTED = 128 + signal.SIGINT
_CLEANING_S = 10.0
"""So long after a signal others are ignored: the end is being made, and a second one must not spoil it."""
_LATER_S = 0.2
_CLEANUPS = {("sqlalchemy.pool.base", "_finalize_fairy"), ("sqlalchemy.pool.base", "_close_connection")}
"""Modules and functions that log whatever is raised inside, with its traceback."""
_CLEANUP_S = 5.0
"""So long such a function may keep a signal waiting: a lost server's may never return."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; the text is its name."""


class Stops:
    """Which signal stopped the command, if one did."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._announced = 0.0
        self._asked: float | None = None

    def status(self, code: int) -> int:
        """Return the exit status of a command that ended with `code`: 128 and the signal where it was interrupted."""
        return 128 + self._number if code == _INTERRUPTED and self._number is not None else code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None and time.monotonic() < self._announced + _CLEANING_S:
            return
        if self._put_off(number, frame):
            return
        self._number, self._announced = number, time.monotonic()
        if number == signal.SIGHUP:
            _leave_dead_terminal()
        raise Stopped(signal.Signals(number).name)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Answer Ctrl-C as Python does, but never where that would be caught."""
        if not self._put_off(number, frame):
            raise KeyboardInterrupt

    def _put_off(self, number: int, frame: FrameType | None) -> bool:
        """Whether what is raised at `frame` would be caught; the signal then comes once more, a little later."""
        self._asked = time.monotonic() if self._asked is None else self._asked
        in_time = time.monotonic() < self._asked + _CLEANUP_S
        if any(_imports(caller) or (in_time and _cleans_up(caller)) for caller in _callers(frame)):
            _again(number)
            return True
        self._asked = None
        return False

    def _unraisable(self, lost: sys.UnraisableHookArgs, before: Callable[[sys.UnraisableHookArgs], Any]) -> None:
        """Stop again where what was raised got lost: in a callback of the garbage collector nothing can be raised."""
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            before(lost)
            return
        number, self._number = self._number, None
        _again(signal.SIGINT if number is None else number)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[Stops]:
    """Have SIGTERM and SIGHUP raise `Stopped` inside; one that is ignored, as under nohup, stays ignored."""
    stops = Stops()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stops._stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, stops._interrupt)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: stops._unraisable(lost, hook)
    try:
        yield stops
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _again(number: int) -> None:
    """Send this process the signal once more, a little later."""
    timer = threading.Timer(_LATER_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _imports(frame: FrameType) -> bool:
    """Whether `frame` is an import's: libraries try one, catch everything and go on without."""
    return str(frame.f_globals.get("__name__", "")).startswith("importlib.")


def _cleans_up(frame: FrameType) -> bool:
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) in _CLEANUPS


def _leave_dead_terminal() -> None:
    """Write into nothing where the terminal is gone: an error there would end the command before it has cleaned up."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
