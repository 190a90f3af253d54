"""What this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdnas.machine import free_memory_bytes, usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_cores_are_those_of_the_process():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)


@pytest.mark.parametrize(
    ("meminfo", "group", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    4096 kB\n", {}, 4096 * 1024),
        ("MemAvailable: 4096 kB\n", {"memory.max": "2000000\n", "memory.current": "500000\n"}, 1_500_000),
        ("MemAvailable: 4096 kB\n", {"memory.max": "max\n", "memory.current": "500000\n"}, 4096 * 1024),
        ("MemAvailable: 4096 kB\n", {"memory.max": "5\n", "memory.current": "9\n"}, 0),
    ],
)
def test_free_memory_keeps_the_containers_limit(monkeypatch, meminfo, group, expected):
    files = {"/proc/meminfo": meminfo, **{f"/sys/fs/cgroup/{name}": text for name, text in group.items()}}

    def read(path, *arguments, **options):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert free_memory_bytes() == expected
