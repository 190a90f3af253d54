"""studies/gpu_check where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


def test_without_a_gpu_the_check_says_so_and_ends(repository: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    started = time.monotonic()
    done = subprocess.run(
        ["bash", repository / "studies" / "gpu_check" / "run.sh", results],
        env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no CUDA device here" in done.stderr
    assert not results.exists()
    assert time.monotonic() - started < 60


def test_the_limits_of_the_parts_keep_the_whole_under_nine_minutes(repository: Path) -> None:
    lines = (repository / "studies" / "gpu_check" / "run.sh").read_text().splitlines()
    words = [line.split() for line in lines if line.startswith(("part ", "benchmark "))]
    limits = {name: int(limit) for _, name, limit, *_ in words}
    assert {"tests", "throughput", "together", "teacher", "search", "latency"} <= set(limits)
    assert sum(limits.values()) <= 540


@pytest.mark.slow
@pytest.mark.parametrize("name", ["throughput", "together", "processes", "teacher", "kernels"])
def test_every_benchmark_runs_small_on_a_cpu(repository: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.json"
    program = repository / "studies" / "gpu_check" / "benchmark.py"
    done = subprocess.run(
        [sys.executable, program, name, out, "--device", "cpu", "--quick"],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["benchmark"] == name
    assert record["machine"]["device"] == "cpu"
    for row in record["rows"]:
        rates = row["images_per_s"]
        assert np.all(np.array(list(rates.values()) if isinstance(rates, dict) else [rates]) > 0)
