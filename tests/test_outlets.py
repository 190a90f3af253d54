"""What leaves the program: in any encoding, and whether or not anybody reads it."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

import kdnas.outlets
from kdnas.outlets import Outlet, fits, in_ascii, open_outlets, quiet_libraries

SYMBOLS = "◆ ★ ≈ ± × ’ “ ” … – — − ≤ ≥ → █ ░ ━ ╸ ▲ µ ² ½ é ü ñ 学 \u202f \u00a0 🙂"


def test_every_symbol_has_a_twin_in_ascii():
    assert in_ascii(SYMBOLS).isascii()
    assert in_ascii("97.1 ± 0.3 % ≈ Müller’s “best” …") == '97.1 +- 0.3 % ~ Muller\'s "best" ...'
    assert in_ascii("学") == "?"
    assert fits("Müller", "latin-1")
    assert not fits("◆", "latin-1")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_encoding_stops_a_line(encoding):
    done = subprocess.run(
        [sys.executable, "-c", f"from kdnas.outlets import open_outlets; open_outlets(); print({SYMBOLS!r}, 'end')"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, check=True,
    )  # fmt: skip
    shown = done.stdout.decode(encoding)
    assert shown.endswith("end\n")
    assert (SYMBOLS in shown) == (encoding == "utf-8")


def test_a_reader_who_left_is_written_to_without_a_word(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    script = (
        "import sys\nfrom kdnas.outlets import open_outlets\nopen_outlets()\n"
        "for n in range(20000):\n    print('a line that fills the buffer', n)\n    sys.stdout.flush()\n"
        "print('on', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True, check=True)
    os.close(writing)
    assert done.stderr == "on\n"


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_descriptor_that_was_turned_elsewhere_is_written_to(tmp_path, options):
    script = "import os, sys\nfrom kdnas.outlets import open_outlets\nos.dup2(2, 1)\nopen_outlets()\nprint('said')"
    with (tmp_path / "file").open("w") as file:
        done = subprocess.run(
            [sys.executable, *options, "-c", script], stdout=file, stderr=subprocess.PIPE, text=True, check=True
        )
    assert done.stderr == "said\n"
    assert (tmp_path / "file").read_text() == ""


def test_libraries_draw_no_bars_and_what_workers_leave_is_not_complained_of(monkeypatch):
    for name in (
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS",
    ):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    monkeypatch.setenv("TQDM_DISABLE", "0")  # the user's own word holds
    monkeypatch.setenv("PYTHONWARNINGS", "error::FutureWarning")
    quiet_libraries()
    quiet_libraries()
    assert (os.environ["TQDM_DISABLE"], os.environ["HF_HUB_DISABLE_PROGRESS_BARS"]) == ("0", "1")
    script = (
        "import os, signal, multiprocessing as m\nfrom multiprocessing.synchronize import Lock\n"
        "l = Lock(ctx=m.get_context('spawn'))\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_streams_that_somebody_put_there_are_left_alone(monkeypatch):
    own, missing = io.StringIO(), None
    monkeypatch.setattr(sys, "stdout", own)
    monkeypatch.setattr(sys, "stderr", missing)
    open_outlets()
    assert sys.stdout is own
    assert sys.stderr is None
    assert kdnas.outlets._outlet(outlet := Outlet(io.BytesIO(), encoding="ascii")) is outlet
