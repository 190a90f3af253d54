"""Students of a text classifier by kdnas's search and by DistilBERT's recipe, at equal data and updates. See README.md.

    KDNAS_DATA=/data python studies/sst2_minilm/run.py [--runs runs/sst2_minilm] [--only trec] [--quick] [--tables]

On each of two data sets two searches with their final trainings. Each resumes where it was interrupted, and results/
is written anew behind each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import kdnas

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import trec  # noqa: E402
from summary import METHODS, Student, Teacher, of_run, write_results  # noqa: E402

STUDIES = {"kdnas": HERE, "distilbert": HERE / "distilbert"}
SETS: dict[str, tuple[str, ...]] = {
    "sst2": (),
    "trec": (
        *(f"data.{name}={file}.tsv" for name, file in (("train", "train"), ("validation", "dev"), ("test", "test"))),
        "data.tokenizer=teacher",
        "data.length=40",
        "teacher.model=teacher",
        "final.epochs=2",
    ),
}
"""What a data set changes in both studies."""
QUICK = (
    "budget.trials=2",
    "rungs=[{epochs: 1, data_fraction: 0.02}]",
    "final.seeds=1",
    "final.max_students=1",
    "final.epochs=1",
    "final.data_fraction=0.02",
    "export.formats=[]",
)
"""Settings that show that everything runs, and nothing else."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/sst2_minilm"))
    parser.add_argument("--only", choices=SETS, help="one of the data sets")
    parser.add_argument("--quick", action="store_true", help="tiny trainings, whose results are left beside the runs")
    parser.add_argument("--tables", action="store_true", help="run nothing, write results/ from what is there")
    arguments = parser.parse_args()
    results = arguments.runs / "results" if arguments.quick else HERE / "results"
    if not arguments.tables:
        for name in [arguments.only] if arguments.only else SETS:
            for method in STUDIES:
                search(name, method, arguments.runs, QUICK if arguments.quick else ())
                tell(arguments.runs, results)
    tell(arguments.runs, results)


def search(name: str, method: str, runs: Path, settings: tuple[str, ...]) -> None:
    """Run, or go on with, the search of one method on the data set `name`."""
    root = Path(os.environ.get("KDNAS_DATA", "data"))
    if name == "trec":
        trec.prepare(root, runs / "trec_data")
        root = runs / "trec_data"
    command = [sys.executable, "-m", "kdnas", "search", str(STUDIES[method]), "--out", str(runs / name / method)]
    changed = [word for setting in (*SETS[name], *settings) for word in ("--set", setting)]
    subprocess.run([*command, "--workers", "1", "--data-root", str(root), *changed], check=True)


def tell(runs: Path, results: Path) -> None:
    """Write the results of all runs that are there."""
    students: list[Student] = []
    teachers: dict[str, Teacher] = {}
    for name in SETS:
        for method in METHODS:
            if (folder := runs / name / method).exists():
                teacher, trained = of_run(name, method, kdnas.load_run(folder).record)
                teachers.setdefault(name, teacher)
                students += trained
    write_results(results, students, teachers)


if __name__ == "__main__":
    main()
