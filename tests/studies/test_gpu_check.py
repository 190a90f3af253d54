"""studies/gpu_check where there is no GPU."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = (
    *("throughput", "together", "teacher", "equality", "derived", "texts"),
    *("latency", "loops", "energy", "kernels", "processes"),
)
MACHINE = {"date": "2026-01-01", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "studies" / "gpu_check"


def test_without_a_gpu_the_check_says_so_and_ends(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    started = time.monotonic()
    done = subprocess.run(
        ["bash", folder / "run.sh", results],
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


def test_the_limits_of_the_parts_keep_the_whole_under_nine_minutes(folder: Path) -> None:
    lines = [line.strip() for line in (folder / "run.sh").read_text().splitlines()]
    words = [line.split() for line in lines if line.startswith(("part ", "benchmark "))]
    limits = {name: int(limit) for _, name, limit, *_ in words}
    assert {"packages", "tests", "search", *BENCHMARKS} == set(limits)
    assert sum(limits.values()) <= 540


def test_no_part_stops_those_after_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "some.whl").touch()
    environment = {"PYTHON": "false", "DEVICE": "cpu", "WHEELS": str(tmp_path / "wheels")}
    done = subprocess.run(
        ["bash", folder / "run.sh", tmp_path / "results"], env={**os.environ, **environment}, timeout=60, check=False
    )
    assert done.returncode == 1
    printed = (tmp_path / "results" / "parts.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in printed] == ["packages", "tests", *BENCHMARKS, "search"]
    assert all(line.endswith("exit 1") for line in printed)


def summary(folder: Path, results: Path) -> dict[str, list[str]]:
    """Return the lines of summary.csv by what they tell."""
    subprocess.run([sys.executable, folder / "summary.py", results], check=True, capture_output=True, timeout=60)
    with (results / "summary.csv").open() as file:
        return {line[0]: line[1:] for line in csv.reader(file)}


def write(results: Path, name: str, rows: list[dict[str, Any]], outcome: str = "done") -> None:
    record = {"benchmark": name, "machine": MACHINE, "quick": False, "outcome": outcome, "rows": rows}
    (results / f"{name}.json").write_text(json.dumps(record))


def test_the_summary_holds_results_against_the_goals(folder: Path, tmp_path: Path) -> None:
    rate = {"spread": 0.02, "graph_failure": None}
    write(tmp_path, "throughput", [
        {"batch_size": 128, "graphs": True, "images_per_s": 90e3, **rate},
        {"batch_size": 128, "graphs": False, "images_per_s": 15e3, **rate},
        {"batch_size": 8192, "graphs": True, "images_per_s": 360e3, **rate},
        {"batch_size": 8192, "graphs": False, "images_per_s": 400e3, **rate, "graph_failure": "not permitted"},
    ])  # fmt: skip
    rows = [{"students": 1, "images_per_s": 90e3, "failed": []}, {"students": 16, "images_per_s": 270e3, "failed": []}]
    write(tmp_path, "together", rows)
    write(tmp_path, "energy", [{"energy_mj_per_image": None, "missing": "NVML says no"}])
    write(tmp_path, "teacher", [{"batch_size": 128, "arithmetic_turned_into_time": 0.95}], "cut short")
    found = summary(folder, tmp_path)
    assert found["one student, images a second, best batch"][:4] == ["3.6e+05", "images/s", "350000", "met"]
    assert found["captured over eager steps, batch 128"][0] == "6"
    assert found["a capture failed: not permitted"][3] == "not measured"
    assert found["16 students at batch 128 over one"][:4] == ["3", "x", "4", "missed"]
    assert found["energy of an image learnt from"][3:] == ["not measured", "NVML says no"]
    assert found["share of the teacher's arithmetic turned into time, batch 128"][3] == "met"
    assert found["teacher"][3:] == ["not measured", "cut short"]
    assert found["loops"][3:] == ["not measured", "did not run"]
    assert "device cpu" in (tmp_path / "summary.md").read_text()


def test_a_check_of_which_nothing_ran_has_a_summary_too(folder: Path, tmp_path: Path) -> None:
    found = summary(folder, tmp_path)
    assert {found[name][3] for name in BENCHMARKS} == {"not measured"}
    assert found["16 students at batch 128 over one"][3] == "not measured"


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_small_on_a_cpu(folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / f"{name}.json"
    paths = os.pathsep.join(map(str, (folder.parents[1], folder.parent / "trial_speed")))
    done = subprocess.run(
        [sys.executable, folder / "benchmark.py", name, out, "--device", "cpu", "--quick"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert (record["benchmark"], record["outcome"], record["machine"]["device"]) == (name, "done", "cpu")
    assert record["rows"]
    for row in record["rows"]:
        assert all(value > 0 for key, value in row.items() if key.startswith("images_per_s"))
    assert name not in summary(folder, tmp_path)  # it is complete
