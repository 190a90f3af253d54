"""The processes of this machine that live, as /proc has them: one that has ended is none, waited for or not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """One that lives."""

    pid: int
    parent: int
    session: int


def process(pid: int) -> Process | None:
    """Return the process of this number; None where it does not live."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else Process(pid, int(fields[1]), int(fields[3]))


def living() -> list[Process]:
    """Return all that live."""
    found = (process(int(folder.name)) for folder in Path("/proc").glob("[0-9]*"))
    return [one for one in found if one is not None]


def parent_of(pid: int) -> int:
    """Return which process has started `pid`, which lives."""
    found = process(pid)
    assert found is not None, f"process {pid} has ended"
    return found.parent


def descendants(pid: int) -> list[int]:
    """Return the processes that `pid` has started, then those that they have."""
    every, found = living(), [pid]
    for one in found:
        found += [child.pid for child in every if child.parent == one]
    return found[1:]


def still_there(pids: Sequence[int], seconds: float = 5.0) -> list[int]:
    """Return those of `pids` that have not ended within some seconds."""
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if process(pid) is not None]) and time.monotonic() < end:
        time.sleep(0.05)
    return left
