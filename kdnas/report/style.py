"""How figures look, and what they are made of: shared by every figure of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from kdnas.record.records import RunRecord

FRONT, FAINT, TEACHER, RECOMMENDED, BROKEN, FULL = "#1d5fa8", "#9fb0c3", "#d1480f", "#0f8a6a", "#b6505f", "#7a55a3"
GRID, INK = "#e6eaf0", "#2b3440"
_LOG_RANGE = 10.0
"""A ratio of largest to smallest value above which an axis is logarithmic."""


@dataclass(frozen=True)
class Figure:
    """A drawn figure, a one-line title and what the reader must know to read it. `wide` ones span the page."""

    name: str
    title: str
    caption: str
    drawing: go.Figure
    wide: bool = False


def is_log(values: Sequence[float]) -> bool:
    """Return whether these values span so much that their axis must be logarithmic."""
    return len(values) > 1 and min(values) > 0 and max(values) / min(values) > _LOG_RANGE


def round_ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Return round values from `low` to `high` (low < high) to mark an axis at: 1, 2 or 5 times powers of ten."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high / low < 300 else (1,)
        values = [step * 10.0**power for power in powers for step in steps]
    else:
        rough = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(low / step)
        values = [k * step for k in range(first, first + 12)]
    return [value for value in values if low <= value <= high]


def escaped(text: str) -> str:
    """Return `text` so that plotly, which reads a little HTML in labels, shows it as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def teacher_value(run: RunRecord, name: str) -> float | None:
    """Return the teacher's value of a quantity (its validation accuracy for accuracy); None when it is not known."""
    if run.teacher is None:
        return None
    return run.teacher.score if name == "accuracy" else run.teacher.values.get(name)


def blend(share: float) -> str:
    """Return the colour of a relative accuracy in [0, 1]: amber over teal to deep blue, readable on white."""
    stops = ((232, 163, 61), (58, 160, 150), (24, 60, 128))
    place = min(max(share, 0.0), 1.0) * 2
    left, right, weight = (stops[0], stops[1], place) if place < 1 else (stops[1], stops[2], place - 1)
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(left, right, strict=True))
    return f"rgb({red},{green},{blue})"


def styled(drawing: go.Figure, height: int = 400) -> go.Figure:
    """Return `drawing` with the report's fonts, grid, margins and legend, `height` pixels high."""
    drawing.update_layout(
        template="none", height=height, autosize=True,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 62, "r": 16, "t": 12, "b": 110}, paper_bgcolor="white", plot_bgcolor="white",
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "font": {"size": 12}}, hovermode="closest",
    )  # fmt: skip
    drawing.update_xaxes(gridcolor=GRID, zeroline=False, linecolor="#8793a3", ticks="outside", title={"standoff": 8})
    drawing.update_yaxes(gridcolor=GRID, zeroline=False, linecolor="#8793a3", title={"standoff": 6})
    return drawing
