"""The figure: hypervolume ratio against full-training units, a panel a table, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from racing import Curve, Racer
from summary import GOAL, Curves, quartiles, ratio_after
from tables import Table

from kdnas import atomic
from kdnas.report.figures import FAINT, FRONT, GRID, INK, RECOMMENDED, TEACHER

COLOURS = {
    "hvi": FRONT,
    "hvi_rungs": RECOMMENDED,
    "gp": "#7b4ea3",
    "tpe": TEACHER,
    "nsga2": "#c79a1e",
    "nni_tpe": "#b6505f",
    "nni_evolution": "#7d6a55",
    "random": FAINT,
}
_BANDS = ("hvi", "hvi_rungs", "gp", "tpe")
_WIDTH, _HEIGHT, _HEAD = 470, 330, 64
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 34, 46
_UNITS = (2.0, 400.0)
_RATIOS = (0.75, 1.0)
_X_TICKS = (2, 5, 10, 20, 50, 100, 200, 400)
_Y_TICKS = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0)


def write_figure(folder: Path, tables: Sequence[Table], racers: Sequence[Racer], curves: Curves) -> None:
    """Write race.svg into `folder`."""
    drawn = [racer for racer in racers if racer.name in COLOURS and any(curves[t.name, racer.name] for t in tables)]
    tables = [table for table in tables if not table.racers]  # on variants nobody races against another
    parts = [*_legend(drawn)]
    for place, table in enumerate(tables):
        x, y = place % 2 * _WIDTH, _HEAD + place // 2 * _HEIGHT
        panel = _panel(table, [(racer, curves[table.name, racer.name]) for racer in drawn])
        parts.append(f'<g transform="translate({x} {y})">\n' + "\n".join(panel) + "\n</g>")
    width, height = 2 * _WIDTH, _HEAD + math.ceil(len(tables) / 2) * _HEIGHT
    lines = "\n".join(parts)
    atomic.write_text(
        folder / "race.svg",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">\n'
        "<title>Hypervolume ratio of each sampler against the full trainings it spent</title>\n"
        f'<rect width="{width}" height="{height}" fill="white"/>\n{lines}\n</svg>\n',
    )


def _x(units: float) -> float:
    low, high = map(math.log, _UNITS)
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log(units) - low) / (high - low)


def _y(ratio: float) -> float:
    low, high = _RATIOS
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (max(ratio, low) - low) / (high - low)


def _panel(table: Table, raced: list[tuple[Racer, Sequence[Curve]]]) -> list[str]:
    parts = [f'<text x="{_LEFT}" y="20" font-size="13" font-weight="600">{escape(table.title)}</text>']
    for units in _X_TICKS:
        parts.append(_line(_x(units), _y(_RATIOS[0]), _x(units), _y(_RATIOS[1]), GRID))
        parts.append(_text(_x(units), _y(_RATIOS[0]) + 16, str(units), "middle"))
    for ratio in _Y_TICKS:
        goal = ratio == GOAL
        parts.append(
            _line(_x(_UNITS[0]), _y(ratio), _x(_UNITS[1]), _y(ratio), "#8793a3" if goal else GRID, dashed=goal)
        )
        parts.append(_text(_LEFT - 7, _y(ratio) + 4, f"{ratio:.2f}", "end"))
    middle = (_x(_UNITS[0]) + _x(_UNITS[1])) / 2
    parts.append(_text(middle, _HEIGHT - 10, "full trainings spent, log scale", "middle"))
    across = (_y(_RATIOS[0]) + _y(_RATIOS[1])) / 2
    parts.append(f'<text x="14" y="{across:.1f}" text-anchor="middle" transform="rotate(-90 14 {across:.1f})">'
                 "hypervolume ratio</text>")  # fmt: skip
    for racer, curves in reversed(raced):  # ours on top
        if curves:
            parts += _curve(racer, curves)
    return parts


def _curve(racer: Racer, curves: Sequence[Curve]) -> list[str]:
    """Return the median as a line, and for some the quartiles as a band, up to where the races ended."""
    end = min(racer.units, max(curve.units[-1] for curve in curves))
    steps = [units for units in np.geomspace(*_UNITS, 160) if units < end] + [end]
    bands = [quartiles([ratio_after(curve, units) for curve in curves]) for units in steps]
    colour, parts = COLOURS[racer.name], []
    if racer.name in _BANDS:
        upper = [f"{_x(u):.1f},{_y(b[2]):.1f}" for u, b in zip(steps, bands, strict=True)]
        lower = [f"{_x(u):.1f},{_y(b[0]):.1f}" for u, b in zip(steps, bands, strict=True)]
        parts.append(f'<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="{colour}" fill-opacity="0.13"/>')
    points = " ".join(f"{_x(u):.1f},{_y(b[1]):.1f}" for u, b in zip(steps, bands, strict=True))
    width = 2.4 if racer.name.startswith("hvi") else 1.5
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
    return parts


def _legend(racers: list[Racer]) -> list[str]:
    parts, left, top = [], float(_LEFT), 22
    for racer in racers:
        width = 26 + 6.6 * len(racer.title) + 18
        if left + width > 2 * _WIDTH:
            left, top = float(_LEFT), top + 22
        parts.append(_line(left, top - 4, left + 20, top - 4, COLOURS[racer.name], width=3))
        parts.append(_text(left + 26, top, racer.title, "start"))
        left += width
    parts.append(_text(2 * _WIDTH - _RIGHT, 44, "median over seeds; bands: quartiles", "end"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False, width: float = 1) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dash}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
