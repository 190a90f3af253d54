"""What the cells say: cells.csv, table.md with the goals, and a figure."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import kdnas
from kdnas import atomic
from kdnas.core.interval import mean_ci95
from kdnas.report.figures import FAINT, FRONT, GRID, INK

Records = Sequence[Mapping[str, Any]]
WORDS = {
    "derived": "cut by kdnas, found by its search",
    "own": "own MobileNet, random weights",
    "even": "teacher scaled evenly, cut by kdnas",
    "pruned": "torch-pruning, global Taylor",
    "fastnas": "NVIDIA ModelOpt, FastNAS",
}
GOALS = {"1/2": 0.5, "1/4": 1.0, "1/10": 2.0}
"""Points that a student may be below the teacher."""


@dataclass(frozen=True)
class Results:
    """What there is to tell: final distillations, the teacher's scores, and new searches."""

    cells: Records
    teacher: Mapping[str, float]
    searches: Sequence[Path]


def cell_key(cell: Mapping[str, Any]) -> tuple[str, str, int, int]:
    """Return what tells a cell from others."""
    return cell["method"], cell["size"], cell["seed"], cell["epochs"]


def write_results(folder: Path, results: Results) -> None:
    """Write tables, figure and the numbers behind them into `folder`."""
    folder.mkdir(exist_ok=True)
    cells = sorted(
        {cell_key(cell): cell for cell in results.cells}.values(),
        key=lambda one: (list(GOALS).index(one["size"]), list(WORDS).index(one["method"]), one["epochs"], one["seed"]),
    )
    for search in results.searches:
        shutil.copyfile(search / "trials.csv", folder / f"trials_{search.name}.csv")
        shutil.copyfile(search / "study.lock.yaml", folder / f"{search.name}.lock.yaml")
    cost = folder / "search_cost.json"
    if results.searches:
        trials = [trial for search in results.searches for trial in kdnas.load_run(search).record.trials]
        spent = math.fsum(seconds for trial in trials for seconds in trial.profile.values())
        atomic.write_text(cost, json.dumps({"scores": len(trials), "seconds": round(spent)}) + "\n")
    _write_csv(folder / "cells.csv", cells)
    atomic.write_text(folder / "teacher.json", json.dumps(results.teacher) + "\n")
    table = _table(cells, results.teacher, json.loads(cost.read_text()))
    atomic.write_text(folder / "table.md", "\n".join(table) + "\n")
    atomic.write_text(folder / "accuracy.svg", _figure(cells, results.teacher))


def _write_csv(path: Path, records: Records) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(records[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    atomic.write_text(path, stream.getvalue())


def _longest(cells: Records) -> Records:
    """Return the cells of the longest trainings of every size and method."""
    return [
        one for one in cells if one["epochs"] == max(cell["epochs"] for cell in _of(cells, one["method"], one["size"]))
    ]


def _of(records: Records, method: str, size: str) -> list[Mapping[str, Any]]:
    return [one for one in records if (one["method"], one["size"]) == (method, size)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _percent(values: Sequence[float]) -> str:
    mean, half = mean_ci95(values)
    return f"{100 * mean:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _table(records: Records, teacher: Mapping[str, float], cost: Mapping[str, float]) -> list[str]:
    lines = [
        f"Teacher: {100 * teacher['test']:.1f} % of 505 test photos, {teacher['macs'] / 1e6:.1f} M MACs. Test "
        "accuracy in %, mean and, of several seeds, 95 % interval; one photo is 0.2 points.",
        "",
        "| size | method | MACs | params | before training | epochs | after | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size in GOALS:
        for method in WORDS:
            for epochs in sorted({cell["epochs"] for cell in _of(records, method, size)}):
                cells = [cell for cell in _of(records, method, size) if cell["epochs"] == epochs]
                one = cells[0]
                cut = "" if one["cut_test"] is None else _percent([cell["cut_test"] for cell in cells])
                after = _percent([cell["test"] for cell in cells])
                lines.append(
                    f"| {size} | {WORDS[method]} | {one['macs'] / 1e6:.1f} M | {one['params'] / 1e3:,.0f} k | {cut} | "
                    f"{epochs} | {after} | {len(cells)} |"
                )
    lines += ["", "| goal | measured | |", "|---|---|---|"]
    for size, points in GOALS.items():
        for epochs in sorted({cell["epochs"] for cell in _of(records, "derived", size)}):
            cells = [cell for cell in _of(records, "derived", size) if cell["epochs"] == epochs]
            below = 100 * (teacher["test"] - _mean([cell["test"] for cell in cells]))
            met = "met" if below <= points else "**missed**"
            lines.append(
                f"| {size}: at most {points:g} points below the teacher | {below:.1f} below after {epochs} epochs, "
                f"n = {len(cells)} | {met} |"
            )
    final = max((cell["train_cpu_s"] for cell in _of(_longest(records), "derived", "1/2")), default=0.0)
    lines += [
        "",
        f"The searches: {cost['scores']} scores, {cost['seconds']} seconds of the clock on a busy machine; one final "
        f"distillation at 1/2 took {final:.0f} CPU seconds.",
    ]
    return lines


def _figure(records: Records, teacher: Mapping[str, float]) -> str:
    """Return an SVG: a panel a size, each training's test accuracy a dot, shorter ones small, the teacher a line."""
    left, width, row, top = 250, 230, 30, 50
    low, high = min(one["test"] for one in records) - 0.03, teacher["test"] + 0.02
    shown = {method: text for method, text in WORDS.items() if any(one["method"] == method for one in records)}
    height = top + row * len(shown)
    longest = max(one["epochs"] for one in records)
    parts = [
        f'<text x="{left - 12}" y="{top + row * (place + 0.5) + 4:.0f}" text-anchor="end">{escape(text)}</text>'
        for place, text in enumerate(shown.values())
    ]
    for panel, size in enumerate(GOALS):
        start = left + panel * (width + 24)

        def x(value: float, start: int = start) -> float:
            return start + width * (value - low) / (high - low)

        parts.append(f'<text x="{start}" y="24" font-weight="600">{size} of the MACs</text>')
        for tick in range(math.ceil(10 * low), math.floor(10 * high) + 1):
            parts.append(f'<path d="M{x(tick / 10):.1f} {top - 10}V{height}" stroke="{GRID}"/>')
            parts.append(
                f'<text x="{x(tick / 10):.1f}" y="{height + 16}" text-anchor="middle" font-size="11">{10 * tick}</text>'
            )
        parts.append(f'<path d="M{x(teacher["test"]):.1f} {top - 14}V{height}" stroke="{INK}" stroke-dasharray="4 3"/>')
        for place, method in enumerate(shown):
            for cell in _of(records, method, size):
                y, colour = top + row * (place + 0.5), FRONT if method == "derived" else FAINT
                radius = 5 if cell["epochs"] == longest else 3
                parts.append(f'<circle cx="{x(cell["test"]):.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>')
                if cell["cut_test"] is not None and cell["cut_test"] > low:
                    at = x(cell["cut_test"])
                    parts.append(f'<circle cx="{at:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="{colour}"/>')
    wide = left + len(GOALS) * (width + 24)
    foot = (
        f"test accuracy in %: rings before the final distillation, dots after {longest} epochs, small ones after "
        "fewer; dashed: the teacher"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height + 44}" width="{wide}" '
        f'height="{height + 44}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}"><title>Test accuracy of every method</title>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}'
        f'<text x="{left}" y="{height + 36}" font-size="12">{foot}</text></svg>\n'
    )
