"""Which promotion rule finds the better front for the trainings spent: kdnas's rules on NAS-Bench-201, 20 seeds.

    python studies/fidelity_rules/run.py [--data shared/data] [--seeds 20]

Students are drawn at random, the same for every rule, and scored after 12 epochs (12/200 of a unit); the promoted are
scored anew after 200 epochs (one unit). Writes results/curves.csv, results/summary.csv and results/summary.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kdnas.core.hypervolume import hypervolume
from kdnas.core.pareto import non_dominated
from kdnas.core.promotion import Rule, Rung, promotable

HERE = Path(__file__).parent
SHORT, FULL = 12, 200
UNITS = (5, 10, 20, 40)
COSTS = {"macs_millions": "MACs", "latency_xeon_gold_6226_ms": "latency on a Xeon"}
SETTINGS: dict[str, tuple[Rule, float] | None] = {
    "200 epochs only": None,
    "halving, eta 3": ("halving", 3.0),
    "moasha, eta 3": ("moasha", 3.0),
    "rank, eta 3": ("rank", 3.0),
    "moasha, eta 16": ("moasha", 16.0),
    "rank, eta 16": ("rank", 16.0),
}


@dataclass(frozen=True)
class Problem:
    """A table as a search meets it: scores [N, 2] (minimised) after a short and a full training."""

    short: np.ndarray
    full: np.ndarray
    reference: np.ndarray
    best: float
    """The hypervolume of all students' full scores."""


def problem(table: pd.DataFrame, cost: str) -> Problem:
    """Return accuracy against `cost`. The reference point is chance (one of a hundred classes) and the largest cost."""
    price = table[cost].to_numpy()
    short, full = (
        np.column_stack([-table[f"cifar100_{column}_percent"].to_numpy() / 100, price])
        for column in ("val_accuracy_12_epochs", "test_accuracy_200_epochs")
    )
    reference = np.array([-0.01, price.max()])
    order = np.lexsort((full[:, 0], full[:, 1]))
    lowest = np.minimum.accumulate(full[order, 0])
    front = full[order][np.append(True, full[order, 0][1:] < lowest[:-1])]
    return Problem(short, full, reference, hypervolume(front, reference))


def search(problem: Problem, setting: tuple[Rule, float] | None, seed: int, budget: float) -> list[tuple[float, int]]:
    """Return (units spent, student) of every full score, in the order in which they came."""
    stream = iter(np.random.default_rng(seed).permutation(len(problem.short)).tolist())
    drawn: list[int] = []
    promoted: dict[int, float] = {}
    spent = 0.0
    while True:
        best = [] if setting is None else _promotable(problem, setting, drawn, promoted)
        cost = 1.0 if best or setting is None else SHORT / FULL
        if spent + cost > budget + 1e-9:
            return [(units, student) for student, units in promoted.items()]
        spent += cost
        if best:
            promoted[drawn[best[0]]] = spent
        elif setting is None:
            promoted[next(stream)] = spent
        else:
            drawn.append(next(stream))


def _promotable(
    problem: Problem, setting: tuple[Rule, float], drawn: list[int], promoted: dict[int, float]
) -> list[int]:
    rule, eta = setting
    started = np.array([student in promoted for student in drawn], dtype=bool)
    above = np.where(started[:, None], problem.full[drawn], np.nan)
    rung = Rung(problem.short[drawn], above, started, np.zeros(len(drawn), dtype=bool))
    return promotable(rule, rung, eta=eta, reference=problem.reference)


def ratios(problem: Problem, scores: list[tuple[float, int]]) -> list[float]:
    """Return the hypervolume ratio after each of UNITS."""
    result = []
    for units in UNITS:
        students = [student for spent, student in scores if spent <= units + 1e-9]
        values = problem.full[students]
        result.append(hypervolume(values[non_dominated(values)], problem.reference) / problem.best)
    return result


def main() -> None:
    """Run every setting on every problem and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.data / "tabular" / "nb201_cifar100.csv.gz")
    rows = []
    for cost, words in COSTS.items():
        setup = problem(table, cost)
        for name, setting in SETTINGS.items():
            for seed in range(arguments.seeds):
                scores = search(setup, setting, seed, UNITS[-1])
                rows += [
                    {"cost": words, "rule": name, "seed": seed, "units": units, "ratio": round(ratio, 5),
                     "full_scores": sum(spent <= units + 1e-9 for spent, _ in scores)}
                    for units, ratio in zip(UNITS, ratios(setup, scores), strict=True)
                ]  # fmt: skip
            print(words, name, flush=True)
    curves = pd.DataFrame(rows)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    curves.to_csv(results / "curves.csv", index=False)
    groups = curves.groupby(["cost", "rule", "units"], sort=False)["ratio"]
    summary = groups.quantile([0.25, 0.5, 0.75]).unstack().round(4)
    summary.columns = pd.Index(["lower_quartile", "median", "upper_quartile"])
    summary.reset_index().to_csv(results / "summary.csv", index=False)
    (results / "summary.md").write_text(_markdown(summary.reset_index(), arguments.seeds), encoding="utf-8")


def _markdown(summary: pd.DataFrame, seeds: int) -> str:
    """Return the medians and quartiles as one table a cost."""
    parts = [f"Hypervolume ratio, median [quartiles] of {seeds} seeds.\n"]
    for cost, rows in summary.groupby("cost", sort=False):
        parts += [f"\nAccuracy and {cost}\n", "| rule | " + " | ".join(f"{units} units" for units in UNITS) + " |"]
        parts.append("|---" * (1 + len(UNITS)) + "|")
        for rule, line in rows.groupby("rule", sort=False):
            cells = [f"{r.median:.3f} [{r.lower_quartile:.3f}, {r.upper_quartile:.3f}]" for r in line.itertuples()]
            parts.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
