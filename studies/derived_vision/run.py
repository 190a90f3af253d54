"""How near to its teacher does a student come that is cut out of it? See README.md.

    KDNAS_DATA=/data python studies/derived_vision/run.py [--methods derived,own] [--seeds 0,1,2] [--tables]

The search first, then one file a cell, the important ones first: everything resumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from methods import METHODS, SIZES, Bench
from summary import write_results

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


def main() -> None:
    """Run what is missing, then write the table and the figure of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--epochs", type=int, default=4, help="of a final distillation")
    parser.add_argument("--runs", type=Path, default=Path("runs/derived_vision"), help="the search and the cells")
    parser.add_argument("--no-search", action="store_true", help="go on with the searches that are there")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the table of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    searches = [arguments.runs / name for name in SEARCHES]
    if not arguments.tables:
        for name, stated in () if arguments.no_search else SEARCHES.items():
            options = [word for text in stated for word in ("--set", text)]
            out = str(arguments.runs / name)
            subprocess.run([sys.executable, "-m", "kdnas", "search", str(HERE), "--out", out, *options], check=True)
        bench = Bench(load_study(HERE), searches)
        _teacher(bench, arguments.runs / "teacher.json")
        for seed in map(int, arguments.seeds.split(",")):
            for method in arguments.methods.split(","):
                for size in arguments.sizes.split(","):
                    path = arguments.runs / f"{method}-{size.replace('/', '_')}-{seed}-{arguments.epochs}.json"
                    if not path.exists():
                        record = _cell(bench, method, size, seed, arguments.epochs)
                        atomic.write_text(path, json.dumps(record, indent=1) + "\n")
                        print(json.dumps(record), flush=True)
    records = [json.loads(path.read_text()) for path in sorted(arguments.runs.glob("*-*-*.json"))]
    if records:
        write_results(HERE / "results", records, json.loads((arguments.runs / "teacher.json").read_text()), searches)


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
    steps = {} if begun.from_teacher else {"optimizer": "sgd", "learning_rate": 0.1}
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
