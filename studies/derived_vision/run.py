"""How near to its teacher does a student come that is cut out of it? See README.md.

    KDNAS_DATA=/data python studies/derived_vision/run.py [--methods derived,own] [--seeds 0,1,2] [--tables]

The searches first, then the cells, a small file each, the important ones first: everything resumes, and what
`results/` already tells is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from methods import METHODS, SIZES, Bench
from summary import Results, cell_key, write_results

from kdnas import atomic
from kdnas.core.seeds import derive_seed
from kdnas.study.loading import load_study
from kdnas.training.loop import distil
from kdnas.training.teacher_cache import TeacherCache
from kdnas.workshop.opening import cache_dir

HERE = Path(__file__).resolve().parent
SEARCHES = {
    "search": (),
    "half": ("space.width=[0.75, 1]", "space.inner=[0.5, 0.75]", "space.depth=0.6..1", "budget.trials=9"),
}
"""Runs, and what they set: the whole space, and its upper part, of which a brief search of the whole sees little."""

FINAL_STEPS = {"learning_rate": 0.003}
"""What hundreds of updates from the teacher's weights take; the search's scores of 51 take smaller steps."""
OWN_STEPS = {"optimizer": "sgd", "learning_rate": 0.1}


def main() -> None:
    """Run what is missing, then write the tables and the figure of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--epochs", type=int, default=12, help="of a final distillation")
    parser.add_argument("--runs", type=Path, default=Path("runs/derived_vision"), help="the searches and the cells")
    parser.add_argument("--search", action="store_true", help="search anew, in place of what results/ tells")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    results = HERE / "results"
    tables = {name: results / f"trials_{name}.csv" for name in SEARCHES}
    searches = []
    if arguments.search or not all(table.exists() for table in tables.values()):
        for name, stated in SEARCHES.items():
            options = [word for text in stated for word in ("--set", text)]
            out = arguments.runs / name
            subprocess.run([sys.executable, "-m", "kdnas", "search", str(HERE), "--out", out, *options], check=True)
            tables[name] = out / "trials.csv"
            searches.append(out)
    done = {cell_key(one) for one in _cells(results, arguments.runs)}
    if not arguments.tables:
        bench = Bench(load_study(HERE), list(tables.values()), arguments.runs)
        _teacher(bench, arguments.runs / "teacher.json")
        for seed in map(int, arguments.seeds.split(",")):
            for method in filter(None, arguments.methods.split(",")):
                for size in arguments.sizes.split(","):
                    if (method, size, seed, arguments.epochs) in done:
                        continue
                    record = _cell(bench, method, size, seed, arguments.epochs)
                    name = f"{method}-{size.replace('/', '_')}-{seed}-{arguments.epochs}.json"
                    atomic.write_text(arguments.runs / name, json.dumps(record, indent=1) + "\n")
                    print(json.dumps(record), flush=True)
    teacher = next(path for path in (arguments.runs / "teacher.json", results / "teacher.json") if path.exists())
    write_results(
        results,
        Results(
            cells=list(_cells(results, arguments.runs)),
            teacher=json.loads(teacher.read_text()),
            searches=searches,
        ),
    )


def _cells(results: Path, runs: Path) -> Iterator[dict[str, Any]]:
    """Yield what an earlier table tells, and what was run since."""
    if (table := results / "cells.csv").exists():
        with table.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                yield {name: _value(text) for name, text in row.items()}
    for path in sorted(runs.glob("*-*-*.json")):
        yield json.loads(path.read_text())


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def _teacher(bench: Bench, path: Path) -> None:
    if not path.exists():
        scores = {"test": bench.workshop.test_score(bench.workshop.teacher.module), "macs": bench.teacher_macs}
        atomic.write_text(path, json.dumps(scores) + "\n")


def _cell(bench: Bench, method: str, size: str, seed: int, epochs: int) -> dict[str, Any]:
    """Return the record of one student's final distillation; its views are those of all of the seed."""
    workshop, began = bench.workshop, time.process_time()
    begun = METHODS[method](bench, size, seed)
    cut = workshop.test_score(workshop.entered(begun.network)) if begun.from_teacher else None
    prepared = time.process_time() - began
    recipe = bench.config.recipe
    steps = FINAL_STEPS if begun.from_teacher else OWN_STEPS
    training = recipe.training.model_copy(update={"epochs": epochs, **steps})
    began = time.process_time()
    trained = distil(
        begun.network, workshop.teacher, workshop.share(1.0), workshop.validation,
        recipe.model_copy(update={"training": training}), data=workshop.data, seed=seed,
        view_seed=derive_seed(seed, "views"), device=torch.device("cpu"),
        teacher_cache=TeacherCache(cache_dir() / "teacher_outputs"),
    )  # fmt: skip
    return {
        "method": method,
        "size": size,
        "seed": seed,
        "epochs": epochs,
        "learning_rate": training.learning_rate,
        "macs": begun.macs,
        "params": begun.params,
        "arch": begun.arch,
        "cut_test": cut,
        "validation": trained.score,
        "test": workshop.test_score(workshop.entered(trained.network)),
        "prepare_cpu_s": round(prepared, 1),
        "train_cpu_s": round(time.process_time() - began, 1),
    }


if __name__ == "__main__":
    main()
