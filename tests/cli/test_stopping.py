"""SIGTERM and SIGHUP end a command as Ctrl-C does."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
import weakref

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from kdnas.cli import _stopping
from kdnas.cli._stopping import Stopped, stopped_by_signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_interrupts_and_gives_the_status_once(number, status):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
    with stopped_by_signals() as stops:
        with pytest.raises(KeyboardInterrupt, match=number.name):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # while the end is made: nothing more
        assert [stops.status(code) for code in (130, 0, 2)] == [status, 0, 2]
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == before


def test_ctrl_c_stays_what_it_is_and_nohup_stays_in_force():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals() as stops:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stops.status(130) == 130
            with pytest.raises(KeyboardInterrupt) as caught:
                os.kill(os.getpid(), signal.SIGINT)
            assert not isinstance(caught.value, Stopped)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_import_that_goes_on_without_what_it_tried_does_not_swallow_it(tmp_path, monkeypatch):
    (tmp_path / "tolerant.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.05)\nexcept BaseException:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with stopped_by_signals() as stops:
        import tolerant  # noqa: F401

        with pytest.raises(Stopped):
            time.sleep(10)
        assert stops.status(130) == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_raised_in_a_callback_of_the_garbage_collector_is_raised_again(number):
    class Value:
        pass

    def gone(reference: object) -> None:
        os.kill(os.getpid(), number)

    value = Value()
    reference = weakref.ref(value, gone)
    with stopped_by_signals() as stops:
        del value
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
        assert stops.status(130) == 128 + number
    assert reference() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_connection_that_is_given_back_is_not_what_a_signal_interrupts(number, caplog):
    """SQLAlchemy logs, with its traceback, whatever is raised there."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    sent = []

    @event.listens_for(engine, "reset")
    def reset(*_: object) -> None:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
            time.sleep(0.05)

    with stopped_by_signals() as stops:
        engine.connect().close()
        assert sent
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
        assert stops.status(130) == 128 + number
    assert not caplog.records


def test_a_cleanup_that_never_ends_keeps_a_signal_waiting_a_moment_only(monkeypatch):
    monkeypatch.setattr(_stopping, "_CLEANUP_S", 0.5)
    monkeypatch.setattr(_stopping, "_CLEANUPS", {(__name__, "_hang")})
    with stopped_by_signals():
        began = time.monotonic()
        with pytest.raises(Stopped):
            _hang()
        assert 0.5 <= time.monotonic() - began < 5


def _hang() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


PROGRAM = """
import sys, time
from pathlib import Path
from kdnas.cli._stopping import stopped_by_signals
with stopped_by_signals() as stops:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleaning", flush=True)
        Path(sys.argv[1]).write_text("cleaned")
        sys.exit(stops.status(130))
"""


def test_a_terminal_that_is_closed_leaves_time_to_clean_up(tmp_path):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "file"],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    assert b"ready" in os.read(controller, 100)
    time.sleep(0.2)  # until its write has returned
    os.close(controller)  # the terminal is gone: the kernel sends SIGHUP, and writing to it is an error
    assert process.wait(20) == 129
    assert (tmp_path / "file").read_text() == "cleaned"
