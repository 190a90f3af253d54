"""What the cells say: results.csv (every cell), summary.csv, table.md, the goals, and the figure."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figure import accuracies
from methods import POLICIES
from setting import SIZES, Setting

from kdnas import atomic
from kdnas.core.interval import pooled_ci95

Records = Sequence[Mapping[str, Any]]
WORDS = {
    "direct": "direct KD",
    "cross_entropy": "cross entropy alone",
    "inherited": "direct KD, inherited weights",
    "chain": "assistant chain",
    "once_for_all": "Once-for-All's phases",
    "sandwich": "sandwich",
    "random": "random subnets (RSS)",
    "delayed": "delayed shrinking",
    "adaptive": "adaptive (kdnas)",
    "alone": "direct KD, a third of the budget each",
}
BASELINES = tuple(policy for policy in POLICIES if policy != "adaptive")
GOAL_POINTS = 1.0


def write_results(folder: Path, setting: Setting, records: Records, runs: Path) -> None:
    """Write all results of `records` into `folder`, the first adaptive shrinking too."""
    folder.mkdir(parents=True, exist_ok=True)
    methods = list(dict.fromkeys(record["method"] for record in records))
    atomic.write_text(folder / "results.csv", _csv(_rows(records)))
    summary = summarised(records)
    atomic.write_text(folder / "summary.csv", _csv(summary))
    atomic.write_text(folder / "table.md", "\n".join(_table(setting, records, methods, summary)) + "\n")
    points = {
        WORDS[method]: {size: [record["test"][size] for record in _of(records, method)] for size in SIZES}
        for method in methods
    }
    atomic.write_text(folder / "accuracy.svg", accuracies(points, records[0]["macs"]))
    shrinking = runs / "adaptive-0.shrinking.yaml"
    if shrinking.exists():
        shutil.copyfile(shrinking, folder / "adaptive_shrinking.yaml")


def summarised(records: Records) -> list[dict[str, Any]]:
    """Return a row for each method and size: mean test accuracy, and its 95 % interval.

    The spread of a size is pooled over the methods: three seeds alone say little about it.
    """
    rows = []
    methods = list(dict.fromkeys(record["method"] for record in records))
    for size in SIZES:
        groups = [[record["test"][size] for record in _of(records, method)] for method in methods]
        for method, values, half in zip(methods, groups, pooled_ci95(groups), strict=True):
            mean = math.fsum(values) / len(values)
            rows.append(
                {
                    "size": size,
                    "method": method,
                    "seeds": len(values),
                    "test_accuracy": round(mean, 5),
                    "ci95": "" if half is None else round(half, 5),
                }
            )
    return rows


def goals(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each goal: the difference in points with its 95 % interval, and whether it is met."""
    found = {(row["size"], row["method"]): row for row in summary}
    lines = []
    small = [found.get(("small", method)) for method in ("adaptive", "direct")]
    if all(small):
        lines.append(_goal("small: adaptive above direct KD", *small, least=GOAL_POINTS))
    for size in SIZES:
        ours = found.get((size, "adaptive"))
        theirs = [found[size, method] for method in BASELINES if (size, method) in found]
        if ours is not None and theirs:
            best = max(theirs, key=lambda row: row["test_accuracy"])
            lines.append(_goal(f"{size}: adaptive against the best baseline, {WORDS[best['method']]}", ours, best, 0.0))
    return lines


def _goal(what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], least: float) -> str:
    points = 100 * (ours["test_accuracy"] - theirs["test_accuracy"])
    half = " (one seed: no interval)"
    if "" not in (ours["ci95"], theirs["ci95"]):
        half = f" ± {100 * math.hypot(ours['ci95'], theirs['ci95']):.1f}"
    met = "met" if points >= least else "**missed**"
    return f"| {what} | {points:+.1f} points{half} | at least {least:+.1f} | {met} |"


def _table(
    setting: Setting, records: Records, methods: Sequence[str], summary: Sequence[Mapping[str, Any]]
) -> list[str]:
    macs, budget = records[0]["macs"], records[0]["budget_macs"]
    found = {(row["size"], row["method"]): row for row in summary}
    lines = [
        f"{setting.images:,} of the 50,000 training images ({setting.images / 50_000:.0%}); budget {budget / 1e12:.1f} "
        f"T MACs a method: {setting.epochs} epochs of each target; {setting.test_images:,} test images; accuracy in %, "
        "mean ± 95 % interval.",
        "",
        "| method | seeds | "
        + " | ".join(f"{size}, {macs[size] / 1e6:.1f} M MACs" for size in SIZES)
        + " | budget spent |",
        "|---|---|---|---|---|---|",
    ]
    for method in methods:
        cells = [_percent(found[size, method]) for size in SIZES]
        spent = [record["spent_macs"] / budget for record in _of(records, method)]
        seeds = len(spent)
        lines.append(f"| {WORDS[method]} | {seeds} | {' | '.join(cells)} | {sum(spent) / seeds:.3f} |")
    shared = [method for method in methods if method in POLICIES]
    if shared:
        lines += [
            "",
            "Cut from the supernet, before fine-tuning:",
            "",
            "| method | small | middle | large |",
            "|---|---|---|---|",
        ]
        for method in shared:
            means = [_mean([record["cut_test"][size] for record in _of(records, method)]) for size in SIZES]
            lines.append(f"| {WORDS[method]} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |")
    if reached := goals(summary):
        lines += ["", "| goal | measured | asked for | |", "|---|---|---|---|", *reached]
    return lines


def _percent(row: Mapping[str, Any]) -> str:
    half = "" if row["ci95"] == "" else f" ± {100 * row['ci95']:.1f}"
    return f"{100 * row['test_accuracy']:.1f}{half}"


def _rows(records: Records) -> list[dict[str, Any]]:
    return [
        {
            "method": record["method"],
            "seed": record["seed"],
            "size": size,
            "macs": record["macs"][size],
            "test_accuracy": record["test"][size],
            "validation_accuracy": record["validation"][size],
            "cut_test_accuracy": record["cut_test"].get(size, ""),
            "spent_macs": record["spent_macs"],
            "cpu_seconds": record["cpu_seconds"],
        }
        for record in records
        for size in SIZES
    ]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _of(records: Records, method: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["method"] == method]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
