"""What the races say, as tables: units until a hypervolume ratio is reached, and ratios after so many units."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from racing import Curve, Racer
from tables import REFERENCE_QUANTILE, Table

from kdnas import atomic
from kdnas.core.hypervolume import hypervolume
from kdnas.core.pareto import non_dominated

Curves = Mapping[tuple[str, str], Sequence[Curve]]
GOAL = 0.95
GOALS = (0.9, GOAL, 0.98)
QUANTILES = (0.01, REFERENCE_QUANTILE, 0.5)
"""Of a table's accuracies: references that the result is shown from."""
AFTER = (8, 12, 16, 20, 24, 30, 50, 100, 200, 400)


def ratio_after(curve: Curve, units: float) -> float:
    """Return the hypervolume ratio after `units` full trainings; a race that ended before keeps its last one."""
    place = int(np.searchsorted(curve.units, units + 1e-9, side="right"))
    return curve.ratios[place - 1] if place else 0.0


def units_to(curve: Curve, ratio: float) -> float:
    """Return the units that were spent when `ratio` was reached, infinite where it never was."""
    reached = np.flatnonzero(np.asarray(curve.ratios) >= ratio)
    return curve.units[reached[0]] if len(reached) else math.inf


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile; infinite values are the largest."""
    ordered = np.sort(np.asarray(values, dtype=float))
    lower, middle, upper = (ordered[_place(share, len(ordered))] for share in (0.25, 0.5, 0.75))
    return float(lower), float(middle), float(upper)


def _place(share: float, count: int) -> int:
    return min(math.ceil(share * count) - 1 if share * count > 1 else 0, count - 1)


def write_summary(folder: Path, tables: Sequence[Table], racers: Sequence[Racer], curves: Curves) -> None:
    """Write summary.csv (every number) and table.md (units to the goal) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = [f"ratio_after_{units}_{q}" for units in AFTER for q in ("q25", "median", "q75")]
    writer.writerow(["table", "sampler", "seeds", "units_to_95_q25", "units_to_95_median", "units_to_95_q75", *columns])
    for table in tables:
        for racer in racers:
            raced = curves[table.name, racer.name]
            if not raced:
                continue
            units = [_shown(value) for value in quartiles([units_to(curve, GOAL) for curve in raced])]
            ratios = [
                f"{value:.4f}" if after <= racer.units else ""
                for after in AFTER
                for value in quartiles([ratio_after(curve, after) for curve in raced])
            ]
            writer.writerow([table.name, racer.name, len(raced), *units, *ratios])
    atomic.write_text(folder / "summary.csv", stream.getvalue())
    atomic.write_text(folder / "table.md", _markdown(tables, racers, curves))
    atomic.write_text(folder / "references.md", _sensitivity(tables, racers, curves))


def _markdown(tables: Sequence[Table], racers: Sequence[Racer], curves: Curves) -> str:
    lines = [
        f"Full-training units until a hypervolume ratio is reached: medians, at {GOAL} with quartiles, and how",
        "many times hvi's that is.",
        "",
    ]
    for table in tables:
        raced = [(racer, found) for racer in racers if (found := curves[table.name, racer.name])]
        medians = {racer.name: quartiles([units_to(curve, GOAL) for curve in found])[1] for racer, found in raced}
        lines += [f"**{table.title}** ({len(table.accuracy):,} students)", ""]
        lines += ["| sampler | seeds | to 0.9 | to 0.95 | to 0.98 | x hvi | x two fidelities | after 16 | after 24 |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for racer, found in raced:
            early, (low, middle, high), late = (quartiles([units_to(c, goal) for c in found]) for goal in GOALS)
            after = [
                f"{quartiles([ratio_after(curve, units) for curve in found])[1]:.3f}" if units <= racer.units else ""
                for units in (16, 24)
            ]
            cells = [racer.title, str(len(found)), _shown(early[1])]
            cells += [f"{_shown(middle)} ({_shown(low)} to {_shown(high)})", _shown(late[1])]
            cells += [_times(middle, racer, medians.get(name)) for name in ("hvi", "hvi_rungs")]
            lines += ["| " + " | ".join([*cells, *after]) + " |"]
        lines += [""]
    return "\n".join(lines)


def _sensitivity(tables: Sequence[Table], racers: Sequence[Racer], curves: Curves) -> str:
    """Return the median units to the goal where the reference is at other quantiles of a table's accuracies."""
    shown = ", ".join(f"{quantile:g}" for quantile in QUANTILES)
    lines = [
        f"Median units until {GOAL}, the reference at these quantiles of the accuracies: {shown}. A race ends by the"
    ]
    lines += [f"ratio from {REFERENCE_QUANTILE:g}, so that others may not be reached.", ""]
    lines += [
        "| table | sampler | " + " | ".join(f"{quantile:g}" for quantile in QUANTILES) + " |",
        "|---|---|---|---|---|",
    ]
    for table in tables:
        for racer in racers:
            if found := curves[table.name, racer.name]:
                medians = [
                    quartiles([units_to(_from(table, curve, quantile), GOAL) for curve in found])[1]
                    for quantile in QUANTILES
                ]
                lines.append("| " + " | ".join([table.title, racer.title, *map(_shown, medians)]) + " |")
    return "\n".join([*lines, ""])


def _from(table: Table, curve: Curve, quantile: float) -> Curve:
    """Return `curve` with the ratios from another reference."""
    reference = table.reference(quantile)
    best = hypervolume(table.true_front, reference)
    front, ratios = np.zeros((0, 2)), []
    for row in curve.rows:
        points = np.concatenate([front, table.points([row])]) if row >= 0 else front
        front = points[non_dominated(points)]
        ratios.append(hypervolume(front, reference) / best)
    return Curve(curve.units, ratios, curve.rows)


def _times(units: float, racer: Racer, ours: float | None) -> str:
    if ours is None or math.isinf(ours):
        return ""
    return f"> {racer.units / ours:.1f}" if math.isinf(units) else f"{units / ours:.1f}"


def _shown(units: float) -> str:
    return "not reached" if math.isinf(units) else f"{units:.3g}"
