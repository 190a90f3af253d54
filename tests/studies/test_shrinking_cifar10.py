"""studies/shrinking_cifar10: what it makes of finished cells, without data."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SIZES = ("small", "middle", "large")
TEST_ACCURACY = {
    ("direct", 0): (0.30, 0.40, 0.50),
    ("direct", 1): (0.32, 0.42, 0.52),
    ("random", 0): (0.33, 0.43, 0.49),
    ("random", 1): (0.33, 0.43, 0.49),
    ("adaptive", 0): (0.34, 0.42, 0.49),
    ("adaptive", 1): (0.34, 0.42, 0.49),
}


def quick_setting(repository: Path) -> Any:
    spec = importlib.util.spec_from_file_location(
        "shrinking_setting", repository / "studies/shrinking_cifar10/setting.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.setting_of("quick", "resnet")


def tables(repository: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, repository / "studies/shrinking_cifar10/run.py", "--quick", "--tables", "--runs", runs]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def runs(repository: Path, tmp_path: Path) -> Path:
    macs = {"small": 1_000_000, "middle": 3_000_000, "large": 6_000_000}
    setting = quick_setting(repository)
    folder = tmp_path / "resnet" / "quick"
    folder.mkdir(parents=True)
    for (method, seed), values in TEST_ACCURACY.items():
        scores = dict(zip(SIZES, values, strict=True))
        record = {
            "method": method, "seed": seed, "setting": setting.as_dict(), "macs": macs,
            "budget_macs": setting.budget(macs), "spent_macs": setting.budget(macs), "test": scores,
            "validation": scores, "cut_test": {} if method == "direct" else scores, "cpu_seconds": 1.0,
        }  # fmt: skip
        (folder / f"{method}-{seed}.json").write_text(json.dumps(record))
    return tmp_path


def test_tables_goals_and_figure_of_finished_cells(repository, runs):
    done = tables(repository, runs)
    assert done.returncode == 0, done.stderr
    results = runs / "resnet" / "quick" / "results"
    table = (results / "table.md").read_text()
    assert "| small: adaptive above direct KD | +3.0 points ± " in table
    assert "| at least +1.0 | met |" in table
    lines = {line.partition(":")[0]: line for line in table.splitlines() if "best baseline" in line}
    for size, end in zip(SIZES, ("| met |", "**missed** |", "| met |"), strict=True):
        assert lines[f"| {size}"].endswith(end)
    with (results / "summary.csv").open() as file:
        rows = {(row["size"], row["method"]): row for row in csv.DictReader(file)}
    assert float(rows["small", "direct"]["test_accuracy"]) == pytest.approx(0.31)
    # Pooled over three methods of two seeds: 3 degrees of freedom, and the other two do not spread.
    spread = math.sqrt(2 * 0.01**2 / 3)
    assert float(rows["small", "direct"]["ci95"]) == pytest.approx(3.1824 * spread / math.sqrt(2), abs=1e-5)
    assert (results / "accuracy.svg").read_text().count("<circle") == 3 * len(TEST_ACCURACY)


def test_cells_of_another_setting_are_refused(repository, runs):
    path = runs / "resnet" / "quick" / "random-1.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "setting": {**record["setting"], "images": 1}}))
    done = tables(repository, runs)
    assert done.returncode == 2
    assert "results of another setting: random-1" in done.stderr
    assert not (runs / "resnet" / "quick" / "results").exists()
