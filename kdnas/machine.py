"""What this process may use of the machine it runs on."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def processor_name() -> str:
    """Return the processor's name, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def free_memory_bytes() -> int | None:
    """Return the memory that is free for use, page cache counted and a container's limit kept; None where unknown."""
    limits = []
    if hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):  # a system without these names
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, KeyError, ValueError):  # Linux: also what the page cache can give back
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        limits = [int(fields["MemAvailable"].split()[0]) * 1024]
    with contextlib.suppress(OSError, ValueError):  # no control group, or no limit ("max")
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        limits.append(max(0, int((group / "memory.max").read_text()) - used))
    return min(limits, default=None)
