"""Being told to stop: SIGTERM (a cluster's stop) and SIGHUP (a closed terminal) end a command as Ctrl-C does."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterator
from types import FrameType

_INTERRUPTED = 128 + signal.SIGINT


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; the text is its name."""


class Stops:
    """Which signal stopped the command, if one did."""

    def __init__(self) -> None:
        self._number: int | None = None

    def status(self, code: int) -> int:
        """Return the exit status of a command that ended with `code`: 128 and the signal where it was interrupted."""
        return 128 + self._number if code == _INTERRUPTED and self._number is not None else code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        for other in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)  # the end is being made: a second one must not spoil it
        if number == signal.SIGHUP:
            _leave_dead_terminal()
        raise Stopped(signal.Signals(number).name)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[Stops]:
    """Have SIGTERM and SIGHUP raise `Stopped` inside; one that is ignored, as under nohup, stays ignored."""
    stops = Stops()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stops._stop)
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_dead_terminal() -> None:
    """Write into nothing where the terminal is gone: an error there would end the command before it has cleaned up."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
