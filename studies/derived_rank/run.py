"""Do brief scores of cut students rank them as longer training does? See README.md.

    KDNAS_DATA=/data python studies/derived_rank/run.py [--only digits] [--tables]

On each data set a search and an audit of students that begin with the teacher's weights, and of the same with random
ones: it resumes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdnas import atomic

HERE = Path(__file__).resolve().parent
STARTS = ("inherited", "random")
STUDENTS = {"digits": 16, "photos": 24}
EPOCHS, SEEDS = 5, 1


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STUDENTS, help="one data set")
    parser.add_argument("--runs", type=Path, default=Path("runs/derived_rank"))
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables of what is there")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else STUDENTS:
        results = HERE / "results" / name
        results.mkdir(parents=True, exist_ok=True)
        if not arguments.tables:
            for start in STARTS:
                _measure(name, start, arguments.runs / name / start, results)
        found = {start: path for start in STARTS if (path := results / f"audit_{start}.json").exists()}
        audits = {start: json.loads(path.read_text(encoding="utf-8")) for start, path in found.items()}
        atomic.write_text(results / "table.md", "\n".join(_table(audits)) + "\n")


def _measure(name: str, start: str, out: Path, results: Path) -> None:
    """Search and audit students of one start, and keep what the audit printed."""
    _kdnas("search", str(HERE / name), "--out", str(out), "--set", f"start={start}")
    wanted = ("--students", str(STUDENTS[name]), "--epochs", str(EPOCHS), "--seeds", str(SEEDS))
    audit = _kdnas("audit", str(out), *wanted, "--json", kept=True)
    atomic.write_text(results / f"audit_{start}.json", audit)
    shutil.copyfile(out / "trials.csv", results / f"trials_{start}.csv")
    shutil.copyfile(out / "study.lock.yaml", results / f"{start}.lock.yaml")


def _kdnas(*arguments: str, kept: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kdnas", *arguments], check=True, text=True, stdout=subprocess.PIPE if kept else None
    )
    return done.stdout or ""


def _table(audits: Mapping[str, Any]) -> list[str]:
    """Return Markdown: tau of the brief scores and of costs alone, with 95 % intervals."""
    lines = [
        f"Kendall's tau with the validation accuracy after {EPOCHS} epochs, 95 % intervals of a bootstrap over the "
        "students.",
        "",
        "| start | students | within | score after 1 epoch | parameters | MACs |",
        "|---|---|---|---|---|---|",
    ]
    for start, audit in audits.items():
        for scope, taus in audit["tau"].items():
            estimates = " | ".join(_estimate(taus.get(name)) for name in ("accuracy", "params", "macs"))
            lines.append(f"| {start} | {len(audit['students'])} | {scope} | {estimates} |")
    return lines


def _estimate(one: Mapping[str, float] | None) -> str:
    return "" if one is None else f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


if __name__ == "__main__":
    main()
