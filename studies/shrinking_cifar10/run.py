"""Progressive shrinking on CIFAR-10 at equal budget: every method, three target sizes, several seeds; see README.md.

    python studies/shrinking_cifar10/run.py [--quick | --full] [--family mobilenet] [--methods a,b] [--seeds 0,1]

One small file a cell (method, seed) is kept under --runs: a run that was interrupted goes on, and processes started
beside each other share the cells.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from methods import METHODS, cell
from setting import TARGETS, Bench, Setting, setting_of
from summary import write_results

from kdnas import atomic
from kdnas.errors import InputError
from kdnas.record.run_folder import locked
from kdnas.training.supernet.shrinking_file import write_shrinking

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the missing cells, then write the tables and the figure of all that are there."""
    arguments = _arguments()
    setting = setting_of(arguments.variant, arguments.family)
    runs: Path = arguments.runs / arguments.family / arguments.variant
    runs.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in arguments.seeds.split(",")] if arguments.seeds else range(setting.seeds)
    cells = [(method, seed) for seed in seeds for method in METHODS if method in arguments.methods.split(",")]
    _records(runs, setting)  # those of another setting are refused before the work, not after
    if not arguments.tables:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bench = Bench.open(setting, arguments.cache, device)
        for method, seed in cells:
            _run(bench, runs, method, seed)
    results = arguments.results or (
        HERE / "results" / arguments.family if arguments.variant == "default" else runs / "results"
    )
    records = _records(runs, setting)
    if records:
        write_results(results, setting, records, runs)
        print((results / "table.md").read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="variant", action="store_const", const="quick", help="one seed, 128 images")
    size.add_argument(
        "--full", dest="variant", action="store_const", const="full", help="all images, 100 epochs: a GPU"
    )
    parser.set_defaults(variant="default")
    parser.add_argument("--family", choices=list(TARGETS), default="resnet", help="whose targets are trained")
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas between; default: all")
    parser.add_argument("--seeds", help="numbers with commas between")
    parser.add_argument("--tables", action="store_true", help="run nothing, write tables and figure of what is there")
    parser.add_argument("--runs", type=Path, default=Path("runs/shrinking_cifar10"), help="one file a cell; resumes")
    parser.add_argument("--cache", type=Path, default=Path("runs/shrinking_cifar10/teacher"), help="teacher's answers")
    parser.add_argument("--results", type=Path, help="default: results/ beside this file, of variants under --runs")
    arguments = parser.parse_args()
    unknown = set(arguments.methods.split(",")) - set(METHODS)
    if unknown:
        parser.error(f"--methods: {', '.join(sorted(unknown))} (allowed: {', '.join(METHODS)})")
    return arguments


def _run(bench: Bench, runs: Path, method: str, seed: int) -> None:
    """Run a cell and keep its record, unless it is there or another process is at it."""
    path = runs / f"{method}-{seed}.json"
    with (runs / f".{path.name}.lock").open("w") as claim:
        if not locked(claim) or path.exists():
            return
        print(f"{method}, seed {seed} ...", flush=True)
        record, shrinking = cell(bench, method, seed)
        if shrinking is not None:
            write_shrinking(runs / f"{method}-{seed}.shrinking.yaml", shrinking)
        atomic.write_text(path, json.dumps(record, indent=1))
        print(
            f"{method}, seed {seed}: {record['test']}, {record['seconds']} s, {record['cpu_seconds']} CPU s", flush=True
        )


def _records(runs: Path, setting: Setting) -> list[dict[str, Any]]:
    """Return all finished cells. Raises InputError where one is of another setting."""
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("*.json"))]
    strangers = [f"{r['method']}-{r['seed']}" for r in records if r["setting"] != setting.as_dict()]
    if strangers:
        raise InputError(f"{runs} holds results of another setting: {', '.join(strangers)}")
    order = list(METHODS)
    return sorted(records, key=lambda record: (order.index(record["method"]), record["seed"]))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
