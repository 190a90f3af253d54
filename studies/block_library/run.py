"""Do summed block losses rank cut students, and is their front found for a quarter of a search? See README.md.

    python studies/block_library/run.py [--of digits|cifar10] [--part ranks|0|1|2] [--tables]

Every part is kept as it is done: it resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from kdnas import atomic
from kdnas.core.block_library import BlockLibrary
from kdnas.core.hypervolume import hypervolume
from kdnas.core.objective import minimised
from kdnas.record.records import RunRecord
from kdnas.record.storage import load_run
from kdnas.study.config import BlocksConfig
from kdnas.training.numerics import computing
from kdnas.workshop.afterwards import open_run
from kdnas.workshop.block_library import open_library
from kdnas.workshop.opening import cache_dir, data_root
from kdnas.workshop.run_files import LIBRARY_FILE

HERE = Path(__file__).resolve().parent
STUDIES = {"digits": HERE, "cifar10": HERE / "cifar10"}
RANKED, SEEDS, SEARCHED, MEMBERS = 24, (0, 1, 2), 32, 6
SETTINGS = ((0, 512), (1, 512), (3, 512), (0, 128))
"""Epochs and samples of the libraries that are compared."""


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/block_library"))
    parser.add_argument("--of", choices=STUDIES, default="digits", help="whose students")
    parser.add_argument("--part", help="run this part alone: ranks, or the fronts of a seed")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables of what is there")
    arguments = parser.parse_args()
    study, runs = STUDIES[arguments.of], arguments.runs / arguments.of
    results = study / "results"
    results.mkdir(exist_ok=True)
    if not arguments.tables:
        if arguments.part in (None, "ranks"):
            _once(results / "ranks.json", lambda: _ranks(study, runs))
        for seed in SEEDS if arguments.part is None else [seed for seed in SEEDS if arguments.part == str(seed)]:
            _once(results / f"fronts_seed{seed}.json", lambda seed=seed: _fronts(study, runs, seed))
    fronts = {seed: path for seed in SEEDS if (path := results / f"fronts_seed{seed}.json").exists()}
    told = {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in fronts.items()}
    ranks, tables = results / "ranks.json", _front_table(told)
    if ranks.exists():
        tables = [*_rank_table(json.loads(ranks.read_text(encoding="utf-8"))), "", *tables]
    atomic.write_text(results / "table.md", "\n".join(tables) + "\n")
    if told:
        _picture(told, results / "fronts.svg")


def _once(path: Path, answer: Callable[[], Any]) -> None:
    if not path.exists():
        atomic.write_text(path, json.dumps(answer(), indent=1) + "\n")


def _search(study: Path, out: Path, *settings: str) -> RunRecord:
    chosen = [part for setting in settings for part in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "kdnas", "search", str(study), "--out", str(out), *chosen], check=True)
    return load_run(out)


def _ranks(study: Path, runs: Path) -> dict[str, Any]:
    """Return by what may rank random students: its value for each, beside their score after a brief distillation."""
    run = _search(study, runs / "random", "sampler=random", f"budget.trials={RANKED}")
    trials = [trial for trial in run.trials if trial.state == "complete"]
    workshop = open_run(run, data_root=data_root(None), cache=cache_dir())
    told: dict[str, list[float]] = {"accuracy": [trial.values["accuracy"] for trial in trials]}
    for name in ("macs", "params"):
        told[name] = [trial.values[name] for trial in trials]
    with computing(run.config.training, workshop.device):
        told["as cut"] = [workshop.validation_score(workshop.family.inherit(trial.arch)) for trial in trials]
    for epochs, samples in SETTINGS:
        folder = runs / f"library_{epochs}x{samples}"
        folder.mkdir(parents=True, exist_ok=True)
        library = open_library(folder, BlocksConfig(samples=samples, epochs=epochs), workshop, seed=0, notify=print)
        local = BlockLibrary(dataclasses.replace(entry, loss=entry.local) for entry in library.entries)
        for kind, one in (("answers", library), ("local", local)):
            told[f"{kind} {epochs}x{samples}"] = [-one.loss(trial.arch.choices) for trial in trials]
        told[f"seconds {epochs}x{samples}"] = [_library_seconds(folder)]
    return told


def _library_seconds(folder: Path) -> float:
    return float(json.loads((folder / LIBRARY_FILE).read_text(encoding="utf-8"))["seconds"])


def _fronts(study: Path, runs: Path, seed: int) -> dict[str, Any]:
    """Return the scores and the seconds of a search by hvi and of the library's front, of one seed."""
    told: dict[str, Any] = {}
    for name, sampler, trials in (("search", "hvi", SEARCHED), ("library", "blocks", MEMBERS)):
        folder = runs / f"{name}_seed{seed}"
        members = [f"sampler.members={MEMBERS}"] if sampler == "blocks" else []
        run = _search(study, folder, f"seed={seed}", f"sampler={sampler}", f"budget.trials={trials}", *members)
        done = [trial for trial in run.trials if trial.state == "complete"]
        told[name] = {
            "accuracy": [trial.values["accuracy"] for trial in done],
            "macs": [trial.values["macs"] for trial in done],
            "seconds": [sum(trial.profile.values()) for trial in done],
            "library_seconds": _library_seconds(folder) if sampler == "blocks" else 0.0,
            "volume": [_volume(run, done[: count + 1]) for count in range(len(done))],
        }
    return told


def _volume(run: RunRecord, trials: list[Any]) -> float:
    reference = minimised([run.reference_point], run.objectives)[0]
    return hypervolume(minimised([trial.values for trial in trials], run.objectives), reference)


def _rank_table(told: Mapping[str, list[float]]) -> list[str]:
    score = told["accuracy"]
    lines = [
        f"Spearman's correlation with the validation accuracy after a brief distillation of {len(score)} random",
        "students, and a bootstrap's 95 % interval over the students.",
        "",
        "| ranked by | Spearman | 95 % interval | seconds to make |",
        "|---|---|---|---|",
    ]
    for name, values in told.items():
        if name == "accuracy" or name.startswith("seconds"):
            continue
        made = told.get(f"seconds {name.rpartition(' ')[2]}")
        low, high = _interval(values, score)
        lines.append(
            f"| {name} | {spearmanr(values, score)[0]:.2f} | {low:.2f} to {high:.2f} | "
            f"{'' if made is None else f'{made[0]:.0f}'} |"
        )
    return lines


def _interval(values: list[float], score: list[float]) -> tuple[float, float]:
    draws, both = np.random.default_rng(0), np.array([values, score])
    places = draws.integers(len(score), size=(2000, len(score)))
    found = [spearmanr(*both[:, drawn])[0] for drawn in places]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def _front_table(told: Mapping[int, Mapping[str, Any]]) -> list[str]:
    lines = [
        "Hypervolume of the library's front beside that of a search of the same trainings, and what each took.",
        "",
        "| seed | search, trials | its seconds | library + trials | its seconds | share of the cost | "
        "volume / search's | search reaches that volume at trial |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, both in told.items():
        search, library = both["search"], both["library"]
        spent, own = sum(search["seconds"]), sum(library["seconds"])
        volume = library["volume"][-1]
        reached = next((str(n) for n, v in enumerate(search["volume"], 1) if v >= volume), "never")
        made = library["library_seconds"]
        lines.append(
            f"| {seed} | {len(search['accuracy'])} | {spent:.0f} | {made:.0f} + {own:.0f} s, "
            f"{len(library['accuracy'])} trials | {made + own:.0f} | {(made + own) / spent:.2f} | "
            f"{volume / search['volume'][-1]:.3f} | {reached} |"
        )
    return lines


def _picture(told: Mapping[int, Mapping[str, Any]], path: Path) -> None:
    """Write the scored students of both, a panel a seed."""
    wide, high, left = 300, 240, 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(wide * len(told) + 20, 640)}" height="{high + 70}" '
        'font-family="sans-serif" font-size="11">'
    ]
    every = [macs for both in told.values() for one in both.values() for macs in one["macs"]]
    scores = [score for both in told.values() for one in both.values() for score in one["accuracy"]]
    low, top = np.log(min(every)), np.log(max(every))
    worst, best = np.quantile(scores, 0.02), 1.0
    for panel, (seed, both) in enumerate(told.items()):
        start = panel * wide + left
        parts.append(f'<text x="{start}" y="16">seed {seed}</text>')
        parts.append(f'<rect x="{start}" y="24" width="{wide - left - 10}" height="{high}" fill="none" stroke="#999"/>')
        for name, colour, size in (("search", "#999999", 3), ("library", "#1f5fbf", 5)):
            for macs, score in zip(both[name]["macs"], both[name]["accuracy"], strict=True):
                x = start + (np.log(macs) - low) / (top - low) * (wide - left - 10)
                y = 24 + high * (1 - (max(score, worst) - worst) / (best - worst))
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}" fill-opacity="0.75"/>')
        for share in (0.0, 0.5, 1.0):
            y = 24 + high * (1 - share)
            parts.append(
                f'<text x="{start - 6}" y="{y + 4:.0f}" text-anchor="end">{worst + share * (best - worst):.2f}</text>'
            )
            x = start + share * (wide - left - 10)
            macs = np.exp(low + share * (top - low)) / 1e6
            parts.append(f'<text x="{x:.0f}" y="{high + 40}" text-anchor="middle">{macs:.2g}M</text>')
    parts.append(
        f'<text x="{left}" y="{high + 60}">validation accuracy against MACs (log): grey, a search of {SEARCHED} '
        f"trials; blue, the library's front, {MEMBERS} trials</text></svg>"
    )
    atomic.write_text(path, "\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
