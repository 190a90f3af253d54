"""Race kdnas's samplers against Optuna's and NNI's on published tables; see README.md.

Run from the repository: python studies/search_efficiency/run.py [--quick] [--workers N] [--seeds N] [--only NAMES] ...
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from figure import write_figure
from racers import BY_NAME, RACERS, SLOW
from racing import Curve, Racer, race
from summary import write_summary
from tables import Table, load_tables

from kdnas import atomic

HERE = Path(__file__).resolve().parent


def main() -> None:
    arguments = _arguments()
    runs = arguments.runs / "quick" if arguments.quick else arguments.runs
    results = arguments.results or (runs / "results" if arguments.quick else HERE / "results")
    racers = [racer for racer in RACERS if not arguments.only or racer.name in arguments.only.split(",")]
    if arguments.seeds:
        racers = [dataclasses.replace(racer, seeds=min(racer.seeds, arguments.seeds)) for racer in racers]
    if arguments.quick:
        racers = [dataclasses.replace(r, units=min(r.units, 40), seeds=2) for r in racers if r.name not in SLOW]
    tables = load_tables(arguments.data / "tabular")
    jobs = _missing(runs, tables, racers)
    print(f"{len(jobs)} races to run", flush=True)
    with ProcessPoolExecutor(arguments.workers) as pool:
        futures = {pool.submit(_run, arguments.data, runs, *job): job for job in jobs}
        for done, future in enumerate(as_completed(futures), 1):
            table, racer, _, seed = futures[future]
            print(f"{done}/{len(jobs)} {table} {racer} seed {seed}: {future.result()}", flush=True)
    curves = {(table.name, racer.name): _read(runs, table, racer) for table in tables for racer in racers}
    write_summary(results, tables, racers, curves)
    write_figure(results, tables, racers, curves)
    print(f"written: {results}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, 40 units, without the slow samplers")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", help="names of racers, with commas between")
    parser.add_argument("--seeds", type=int, help="at most so many seeds")
    data = Path(os.environ.get("KDNAS_DATA", HERE.parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, help="the data root, which holds tabular/")
    parser.add_argument("--runs", type=Path, default=Path("runs/search_efficiency"), help="one file a race; resumes")
    parser.add_argument("--results", type=Path, help="by default results/ beside this file")
    return parser.parse_args()


def _path(runs: Path, table: str, racer: str, seed: int) -> Path:
    return runs / table / racer / f"{seed}.json"


def _missing(runs: Path, tables: Sequence[Table], racers: Sequence[Racer]) -> list[tuple[str, str, int, int]]:
    """Return (table, racer, units, seed) of the races without a result, first seeds first."""
    return [
        (table.name, racer.name, racer.units, seed)
        for seed in range(max(racer.seeds for racer in racers))
        for racer in racers
        for table in tables
        if seed < racer.seeds
        and racer.name in (table.racers or BY_NAME)
        and (racer.rule is None or table.short_accuracy is not None)
        and not _path(runs, table.name, racer.name, seed).is_file()
    ]


@cache
def _tables(data: Path) -> dict[str, Table]:
    return {table.name: table for table in load_tables(data / "tabular")}


def _run(data: Path, runs: Path, table: str, racer: str, units: int, seed: int) -> str:
    """Run one race and keep its curve; return how it ended."""
    curve = race(_tables(data)[table], dataclasses.replace(BY_NAME[racer], units=units), seed)
    path = _path(runs, table, racer, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps(dataclasses.asdict(curve)))
    return f"{curve.ratios[-1]:.3f} after {curve.units[-1]:g} units"


def _read(runs: Path, table: Table, racer: Racer) -> list[Curve]:
    paths = [_path(runs, table.name, racer.name, seed) for seed in range(racer.seeds)]
    return [Curve(**json.loads(path.read_text())) for path in paths if path.is_file()]


if __name__ == "__main__":
    main()
