"""How well does an additive latency table price students, and how fast? Writes results/ beside this file.

python studies/latency_table/run.py            about four minutes on a quiet two-core machine
python studies/latency_table/run.py --quick    one case, few rounds: to see it work
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdnas import atomic
from kdnas.core.latency_table import LatencyTable
from kdnas.core.task import image_classification
from kdnas.costs import COSTS
from kdnas.record.lock import this_machine
from kdnas.report.figures import FAINT, FRONT, GRID, INK, TEACHER, round_ticks
from kdnas.students import family_for
from kdnas.study.spaces import arch_of, load_space
from kdnas.workshop.latency_table import LearnedTable, learn_latency_table

HERE = Path(__file__).parent
TASK = image_classification((3, 32, 32), 10)
CASES = (("cpu", "cifar_resnet", 150), ("cpu", "cifar_mobilenet", 120), ("onnxruntime", "cifar_resnet", 200))
"""Target, space, and how often each of the 80 students is timed."""
GOAL = {"median_error": 0.05, "spearman": 0.97}
PRICED = 20_000


def main() -> int:
    """Run every case, write the results, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    cases = [(*CASES[0][:2], 20)] if arguments.quick else CASES
    started, load = time.perf_counter(), os.getloadavg()
    learned: dict[tuple[str, str], LearnedTable] = {}
    rows = []
    for target, space, rounds in cases:
        begun = time.perf_counter()
        cost = COSTS.build("latency_ms", torch.device("cpu"), target=target)
        loaded = load_space(space, Path())
        family = family_for(loaded.family, TASK)
        found = learn_latency_table(loaded, family, cost, rounds=rounds, notify=print)
        learned[target, space] = found
        write_students(arguments.out / f"{target}_{space}.csv", found)
        rows.append({"target": cost.target.where, "space": space, "rounds": rounds, **dataclasses.asdict(found.fit())})
        rows[-1] |= {"macs_spearman": macs_correlation(found), "reference_ms": found.reference_ms}
        rows[-1] |= {"drift": found.drift, "seconds": time.perf_counter() - begun, **pricing(space, found.table)}
        print(f"{target}, {space}: {found.fit().words}")
        print(f"  MACs alone: {rows[-1]['macs_spearman']:.3f}; reference changed by {found.drift:.0%} meanwhile")
        print(f"  pricing one candidate: {rows[-1]['price_us']:.1f} µs of processor time (median of 9 x {PRICED:,})")
    write_csv(arguments.out / "summary.csv", rows)
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        **dataclasses.asdict(this_machine()),
        "load_before": load,
        "load_after": os.getloadavg(),
    }
    atomic.write_text(arguments.out / "machine.json", json.dumps(about, indent=2) + "\n")
    atomic.write_text(arguments.out / "table.svg", picture(learned))
    missed = [row for row in rows if row["median_error"] > GOAL["median_error"] or row["spearman"] < GOAL["spearman"]]
    for row in missed:
        print(f"missed: {row['target']}, {row['space']}")
    print(f"{time.perf_counter() - started:.0f} s; results in {arguments.out}")
    return int(bool(missed))


def macs_correlation(found: LearnedTable) -> float:
    """Return the rank correlation with latency that MACs alone would have, on the held-out students."""
    from scipy.stats import spearmanr

    family = family_for(found.students[0].arch.family, TASK)
    macs = [family.price(student.arch).macs for student in found.held_out]
    return float(spearmanr(macs, [student.latency_ms for student in found.held_out]).statistic)


def pricing(space_name: str, table: LatencyTable) -> dict[str, float]:
    """Return the processor time in microseconds from an assignment to MACs, parameters and table latency."""
    space = load_space(space_name, Path())
    family, rng = family_for(space.family, TASK), np.random.default_rng(1)
    assignments = [space.random(rng) for _ in range(PRICED)]

    def price(assignment: dict[str, Any]) -> None:
        arch = arch_of(space, assignment, family)
        family.price(arch)
        table.price_groups(family.groups(arch))

    times = [_microseconds(price, assignments) for _ in range(10)]
    return {"price_first_us": times[0], "price_us": statistics.median(times[1:])}


def _microseconds(work: Callable[[Any], None], items: list[Any]) -> float:
    start = time.thread_time()
    for item in items:
        work(item)
    return (time.thread_time() - start) / len(items) * 1e6


def write_students(path: Path, found: LearnedTable) -> None:
    """Write one row a student."""
    family = family_for(found.students[0].arch.family, TASK)
    rows = []
    for student in found.students:
        price = family.price(student.arch)
        rows.append(
            {
                "arch_id": student.arch.arch_id,
                "held_out": int(student.held_out),
                "latency_ms": student.latency_ms,
                "iqr_ms": student.spread_ms,
                "table_ms": student.predicted_ms,
                "relative_error": student.relative_error,
                "macs": price.macs,
                "params": price.params,
                "arch": student.arch.canonical_json,
            }
        )
    write_csv(path, rows)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows`, all of the same keys."""
    with atomic.replacing(path) as scratch, scratch.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.5g}" if type(value) is float else value for key, value in row.items()})


WIDTH, HEIGHT, LEFT, TOP, SIDE = 380, 400, 58, 62, 300


def picture(learned: dict[tuple[str, str], LearnedTable]) -> str:
    """Return one panel a case as SVG: the table's latency against the measured one."""
    panels = [panel(*case, found, index * WIDTH) for index, (case, found) in enumerate(learned.items())]
    width = WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="13" fill="{INK}">\n'
        "<title>Latency that the additive table tells, against the measured one</title>\n"
        f'<rect width="{width}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def panel(target: str, space: str, found: LearnedTable, left: float) -> str:
    """Return the points of one case: learned ones pale, held-out ones dark, a band of 5 % around equality."""
    values = [v for student in found.students for v in (student.latency_ms, student.predicted_ms)]
    high = max(values) * 1.05
    x0, y0 = left + LEFT, TOP + SIDE

    def at(value: float) -> float:
        return SIDE * value / high

    fit = found.fit()
    facts = f"held out: median error {100 * fit.median_error:.1f} %, rank correlation {fit.spearman:.3f}"
    parts = [
        f'<text x="{x0}" y="22" font-size="15" font-weight="600">{target}, {space}</text>',
        f'<text x="{x0}" y="44" font-size="12">{facts}</text>',
    ]
    for value in round_ticks(0.0, high, log=False):
        x, y = x0 + at(value), y0 - at(value)
        parts.append(f'<path d="M{x0} {y:.1f}h{SIDE}M{x:.1f} {y0}v{-SIDE}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{y0 + 18}" text-anchor="middle">{value:g}</text>')
    low_y, high_x = at(0.95 * high), at(high / 1.05)
    band = f"M{x0} {y0}L{x0 + SIDE} {y0 - low_y:.1f}V{y0 - SIDE}H{x0 + high_x:.1f}Z"
    parts.append(f'<path d="{band}" fill="{FRONT}" fill-opacity="0.12"/>')
    parts.append(f'<path d="M{x0} {y0}L{x0 + SIDE} {y0 - SIDE}" stroke="{FRONT}" stroke-dasharray="4 4"/>')
    parts += list(points((s for s in found.students if not s.held_out), FAINT, 3.4, x0, y0, at))
    parts += list(points((s for s in found.students if s.held_out), TEACHER, 4.0, x0, y0, at))
    parts.append(f'<path d="M{x0} {y0}h{SIDE}M{x0} {y0}v{-SIDE}" stroke="#8793a3"/>')
    parts.append(f'<text x="{x0 + SIDE / 2}" y="{y0 + 36}" text-anchor="middle">measured latency (ms)</text>')
    middle = TOP + SIDE / 2
    parts.append(
        f'<text x="{left + 16}" y="{middle}" text-anchor="middle" transform="rotate(-90 {left + 16} {middle})">'
        "table's latency (ms)</text>"
    )
    for index, (colour, text) in enumerate(((TEACHER, "held out"), (FAINT, "learned from"))):
        y = TOP + 14 + 18 * index
        parts.append(f'<circle cx="{x0 + 14}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x0 + 24}" y="{y + 4}">{text}</text>')
    return "\n".join(parts)


def points(
    students: Iterable[Any], colour: str, radius: float, x0: float, y0: float, at: Callable[[float], float]
) -> Iterable[str]:
    """Yield a circle a student."""
    for student in students:
        x, y = x0 + at(student.latency_ms), y0 - at(student.predicted_ms)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.85"/>'


if __name__ == "__main__":
    sys.exit(main())
