"""What workers are given in tests of executors: jobs that behave as their fields state, and starts that fail.

Worker processes import this file: it needs no pytest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdnas.errors import DataError, RunFolderError, TrialError
from kdnas.executors import Executor, Finished


@dataclass(frozen=True)
class Task:
    """What a worker is to do."""

    do: str = ""
    x: int = 0
    seconds: float = 0.0
    file: str = ""
    arch: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return what it states."""
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(frozen=True)
class Seen:
    """What came of it: the `values` that a scoring would state, and what the test looks at."""

    values: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[str, Any] = field(default_factory=dict)


Answer = Callable[[Task], Seen]


def answer(job: Task) -> Seen:
    """Behave as the job states."""
    match job.do:
        case "square":
            return Seen({"accuracy": job.x / 10, "macs": 5.0}, {"value": job.x**2, "pid": os.getpid()})
        case "infeasible":
            return Seen({"macs": 5.0}, {"infeasible": "too large"})
        case "sleep":
            time.sleep(job.seconds)
            return Seen(seen={"pid": os.getpid()})
        case "start a process":
            Path(job.file).write_text(str(os.getpid()))
            subprocess.run(["sleep", "300"], check=False)
        case "load with workers":
            from torch.utils.data import DataLoader

            loader: Any = DataLoader(range(10), batch_size=5, num_workers=2)  # type: ignore[arg-type]
            return Seen(seen={"sum": int(sum(b.sum() for b in loader))})
        case "trial error":
            raise TrialError("loss became nan")
        case "error":
            raise ZeroDivisionError("by zero")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(3)
        case "print":
            print("from a user's module")
            return Seen()
        case "full disk":
            raise RunFolderError("the disk is full")
        case "threads":
            import torch

            return Seen(seen={"threads": torch.get_num_threads()})
        case "where":
            shown = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HOME", "KDNAS_NNI_MANAGER")
            open_files = [str(Path(entry).readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
            return Seen(seen={"cwd": str(Path.cwd()), "files": open_files, **{n: os.environ.get(n) for n in shown}})
    raise AssertionError(job)


def make_evaluate() -> Answer:
    """Return what answers jobs."""
    return answer


def refuse_input() -> Answer:
    """Fail as a worker whose data are not there."""
    raise DataError("the data went away")


def die_at_start() -> Answer:
    """Die as a worker that lacks a library."""
    print("no such library", file=sys.stderr, flush=True)
    os._exit(7)


def die_at_the_first_start() -> Answer:
    """Die at the first start of all, and answer jobs from the second on."""
    first = Path(os.environ["KDNAS_TEST_FIRST_START"])
    if not first.exists():
        first.touch()
        os._exit(7)
    return answer


def collect(executor: Executor[Task, Seen], count: int, seconds: float = 90) -> list[Finished[Seen]]:
    """Return what ended within `seconds`, up to `count` jobs."""
    finished: list[Finished[Seen]] = []
    end = time.monotonic() + seconds
    while len(finished) < count and time.monotonic() < end:
        finished += executor.wait(0.2)
    return finished
