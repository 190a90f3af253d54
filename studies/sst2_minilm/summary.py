"""What the runs say: students.csv, a line a training; table.md with the comparison and the goals; a figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from kdnas import atomic
from kdnas.core.interval import mean_ci95
from kdnas.core.words import counted
from kdnas.record.records import RunRecord
from kdnas.report.figures import FAINT, FRONT, GRID, INK

METHODS = {"kdnas": "kdnas", "distilbert": "DistilBERT's recipe"}
TITLES = {"sst2": "SST-2", "trec": "TREC, coarse labels"}
GOALS = {0.5: 1.0, 0.25: 3.0}
"""By share of the teacher's latency: how many points below its accuracy a student may be."""
_SAME = 1.05
"""Costs that differ by less are told equal."""
_COLOURS = {"kdnas": FRONT, "distilbert": "#c2571a"}
_PANEL, _HEIGHT, _EDGE = 340, 330, 56


@dataclass(frozen=True)
class Teacher:
    """Whom the students of one data set are cut out of."""

    validation: float
    test: float
    macs: float
    params: float


@dataclass(frozen=True)
class Student:
    """One student with all of its final trainings; costs are shares of its teacher's."""

    data: str
    method: str
    arch: str
    layers: int
    inner: int
    updates: int
    macs: float
    params: float
    latency: float
    validation: tuple[float, ...]
    test: tuple[float, ...]


def of_run(data: str, method: str, run: RunRecord) -> tuple[Teacher, list[Student]]:
    """Return the teacher of a run and the students that were trained in full, cheapest first."""
    teacher = run.teacher
    assert teacher is not None
    assert teacher.test_score is not None
    found = []
    for trial in run.trials:
        done = [repeat for repeat in trial.repeats if repeat.test_score is not None]
        if done:
            fidelity, share = (
                done[0].fidelity,
                {name: trial.values[name] / teacher.values[name] for name in trial.values if name in teacher.values},
            )
            samples = int(run.lock.data.training_samples or 0) * fidelity.epochs * fidelity.data_fraction
            found.append(
                Student(
                    data,
                    method,
                    trial.arch.arch_id,
                    int(trial.arch.choices["depth"]),
                    int(trial.arch.choices["inner"]),
                    round(samples / run.config.training.batch_size),
                    share["macs"],
                    share["params"],
                    share["latency_ms"],
                    tuple(repeat.score for repeat in done),
                    tuple(repeat.test_score or 0.0 for repeat in done),
                )
            )
    costs = teacher.values
    known = Teacher(teacher.score, teacher.test_score, costs["macs"], costs["params"])
    return known, sorted(found, key=lambda one: one.latency)


def write_results(folder: Path, students: Sequence[Student], teachers: Mapping[str, Teacher]) -> None:
    """Write the table, the numbers behind it and the figure into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [table(data, [one for one in students if one.data == data], teacher) for data, teacher in teachers.items()]
    atomic.write_text(folder / "table.md", "\n\n".join(parts) + "\n")
    atomic.write_text(folder / "students.csv", numbers(students))
    atomic.write_text(folder / "accuracy.svg", figure(students, teachers))


def table(data: str, students: Sequence[Student], teacher: Teacher) -> str:
    """Return the students of one data set beside their teacher, who is ahead of whom, and the goals."""
    lines = [
        f"{TITLES[data]}: accuracy in %, mean of the seeds and its 95 % interval; costs as shares of the teacher's.",
        "",
        "| student | layers, MLP | latency | MACs | params | updates, seeds | validation | test |",
        "|" + "---|" * 8,
    ]
    for one in students:
        costs = f"{one.latency:.2f} | {one.macs:.2f} | {one.params:.2f} | {one.updates}, {len(one.test)}"
        scores = f"{percent(one.validation)} | {percent(one.test)}"
        lines.append(f"| {METHODS[one.method]} | {one.layers}, {one.inner} | {costs} | {scores} |")
    scores = f"{percent([teacher.validation])} | {percent([teacher.test])}"
    lines.append(f"| teacher | | 1 ({teacher.macs / 1e6:.0f} M MACs) | 1 | 1 | | {scores} |")
    lines += ["", *comparison(students), *goals(students, teacher)]
    return "\n".join(lines)


def comparison(students: Sequence[Student]) -> list[str]:
    """Return a line a student of the recipe: how far ahead kdnas's best of no more latency, and of no more MACs, is."""
    lines = []
    for other in (one for one in students if one.method != "kdnas"):
        told = []
        for cost, words in (("latency", "latency"), ("macs", "MACs")):
            most = getattr(other, cost)
            ours = best_within(students, most, cost)
            if ours is None:
                told.append(f"at {most:.2f} of the {words} there is no student of kdnas's")
                continue
            ahead, half = 100 * (mean(ours.test) - mean(other.test)), interval(ours.test, other.test)
            wide = "" if half is None else f" ± {half:.1f}"
            size = f"{ours.layers}, {ours.inner} ({getattr(ours, cost):.2f})"
            told.append(
                f"at {most:.2f} of the {words} kdnas's {size} is {ahead:+.1f}{wide} points ahead on the test texts"
            )
        lines.append(f"- {METHODS[other.method]}, {counted(other.layers, 'layer')}: {'; '.join(told)}.")
    return lines


def goals(students: Sequence[Student], teacher: Teacher) -> list[str]:
    """Return a line a goal: how far below the teacher kdnas's best student of that latency is on the test texts."""
    lines = []
    for share, points in GOALS.items():
        title = f"- Goal: {share:g} of the latency, at most {points:g} points below the teacher:"
        best = best_within(students, share)
        if best is None:
            lines.append(f"{title} **missed**, no student was trained there.")
            continue
        below = 100 * (teacher.test - mean(best.test))
        met = "met" if below <= points else "**missed**"
        lines.append(f"{title} {met}, {below:.1f} points below at {best.latency:.2f}.")
    return lines


def best_within(students: Sequence[Student], most: float, cost: str = "latency") -> Student | None:
    """Return kdnas's student of the best validation score among those of about so much `cost` or less."""
    within = [one for one in students if one.method == "kdnas" and getattr(one, cost) <= most * _SAME]
    return max(within, key=lambda one: mean(one.validation), default=None)


def interval(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the 95 % interval of a difference of means in points, from those of the two; None of single trainings."""
    halves = [mean_ci95(scores)[1] for scores in (ours, theirs)]
    return None if None in halves else 100 * math.hypot(*(half or 0.0 for half in halves))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def percent(values: Sequence[float]) -> str:
    """Return the mean in percent with its 95 % interval."""
    middle, half = mean_ci95(values)
    return f"{100 * middle:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def numbers(students: Sequence[Student]) -> str:
    """Return one line a training."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    costs = ("macs", "params", "latency")
    writer.writerow(["data", "method", "arch_id", "layers", "inner", "updates", *costs, "validation", "test"])
    for one in students:
        known = (one.data, one.method, one.arch, one.layers, one.inner, one.updates)
        shares = [f"{getattr(one, name):.4f}" for name in costs]
        for validation, test in zip(one.validation, one.test, strict=True):
            writer.writerow([*known, *shares, f"{validation:.5f}", f"{test:.5f}"])
    return stream.getvalue()


def figure(students: Sequence[Student], teachers: Mapping[str, Teacher]) -> str:
    """Return an SVG: a panel a data set, every training's test accuracy against the share of the teacher's latency."""
    width = _EDGE + max(1, len(teachers)) * (_PANEL + _EDGE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
    ]
    for place, (method, colour) in enumerate(_COLOURS.items()):
        parts.append(f'<circle cx="{_EDGE + 6 + 150 * place}" cy="16" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{_EDGE + 16 + 150 * place}" y="20">{escape(METHODS[method])}</text>')
    for number, (data, teacher) in enumerate(teachers.items()):
        shown = [one for one in students if one.data == data]
        parts += panel(_EDGE + number * (_PANEL + _EDGE), TITLES[data], shown, teacher)
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(left: int, title: str, students: Sequence[Student], teacher: Teacher) -> list[str]:
    """Return the drawing of one data set, its left edge at `left`."""
    scores = [teacher.test, *(score for one in students for score in one.test)]
    low, high = min(scores) - 0.01, max(scores) + 0.01
    top, bottom = _EDGE, _HEIGHT - _EDGE

    def right(latency: float) -> float:
        return left + latency * _PANEL / 1.05

    def down(score: float) -> float:
        return bottom - (score - low) / (high - low) * (bottom - top)

    parts = [f'<text x="{left}" y="{top - 12}" font-weight="bold">{escape(title)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = right(share)
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{share:g}</text>')
    step = 0.02 if high - low < 0.2 else 0.05
    for count in range(math.ceil(low / step), math.floor(high / step) + 1):
        y = down(count * step)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + _PANEL}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * count * step:.0f} %</text>')
    height = down(teacher.test)
    parts.append(f'<line x1="{left}" y1="{height:.1f}" x2="{left + _PANEL}" y2="{height:.1f}" '
                 f'stroke="{FAINT}" stroke-dasharray="5 4"/>')  # fmt: skip
    parts.append(f'<text x="{left + _PANEL}" y="{height - 5:.1f}" text-anchor="end">teacher</text>')
    for one in students:
        for score in one.test:
            place = f'cx="{right(one.latency):.1f}" cy="{down(score):.1f}"'
            parts.append(f'<circle {place} r="4" fill="{_COLOURS[one.method]}" fill-opacity="0.6"/>')
    words = "latency of one text, as a share of the teacher's"
    parts.append(f'<text x="{left + _PANEL / 2}" y="{_HEIGHT - 18}" text-anchor="middle">{words}</text>')
    return parts
