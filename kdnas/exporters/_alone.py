"""Exported files put to the test in a process of their own, in which there is no kdnas."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from kdnas.errors import ExportError

_TIME_LIMIT_S = 300
_WITHOUT = """\
import runpy, sys
absent, threads, script, *arguments = sys.argv[1:]
for name in absent.split(","):
    sys.modules[name] = None
if threads:
    import torch
    torch.set_num_threads(int(threads))
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def run_alone(script: Path, *arguments: object, folder: Path, absent: Sequence[str] = (), threads: bool = True) -> str:
    """Run a Python file in `folder`, kdnas and the packages `absent` out of its reach, and return what it prints.

    With `threads` torch computes with as many as here, so that its sums are added up in the same order. Raises
    ExportError naming the file where it fails.
    """
    count = str(torch.get_num_threads()) if threads else ""
    command = [sys.executable, "-I", "-c", _WITHOUT, ",".join(("kdnas", *absent)), count]
    try:
        ran = subprocess.run(
            [*command, str(script), *map(str, arguments)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"{script.name}: it did not finish within {_TIME_LIMIT_S} seconds") from None
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        if ours := re.search(r"(?:No module named '|import of )(kdnas[.\w]*)", last):
            what = f"the code that builds the network needs {ours[1]}, and exports run without kdnas"
            raise ExportError(f"{script.name}: {what} (allowed: a factory that builds it with torch alone)")
        raise ExportError(f"{script.name}: it fails when run alone: {last}")
    return ran.stdout
