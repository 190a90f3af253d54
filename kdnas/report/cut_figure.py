"""What matters in a teacher that students are cut out of: how its importance lies in few or in many units."""

from __future__ import annotations

import json
from collections.abc import Sequence

import plotly.graph_objects as go

from kdnas.record.records import RunRecord
from kdnas.report.figures import Figure, escaped, styled

_COLUMNS = 20
_FILE = "family.json"


def cut_figure(run: RunRecord) -> Figure | None:
    """Return one row an axis or stage of the teacher, its units from the most important on; None without any."""
    try:
        plain = json.loads((run.folder / _FILE).read_text(encoding="utf-8"))
        scores = {str(name): [float(value) for value in values] for name, values in plain["scores"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    rows = {name: _held(values) for name, values in scores.items() if len(values) > 1 and max(values) > 0}
    if not rows:
        return None
    names = list(reversed(rows))
    drawing = go.Figure(
        go.Heatmap(
            z=[rows[name] for name in names], y=[escaped(name) for name in names],
            x=[(column + 1) / _COLUMNS for column in range(_COLUMNS)], zmin=0.0, zmax=1.0, colorscale="Blues",
            hovertemplate="%{y}: the best %{x:.0%} hold %{z:.0%}<extra></extra>",
        )
    )  # fmt: skip
    drawing.update_xaxes(title="Share of units or blocks that stay", tickformat=".0%")
    drawing = styled(drawing, height=max(240, 120 + 22 * len(rows)))
    drawing.update_yaxes(automargin=True, tickfont={"size": 11})
    note = (
        "How much of its importance the best units of an axis, or blocks of a stage, hold: dark from the left on, few "
        f"matter, and the rest can go. Ranked by {escaped(str(plain.get('method', '')))}."
    )
    return Figure("cut", "What matters in the teacher", note, drawing)


def _held(values: Sequence[float]) -> list[float]:
    """Return the share of all importance that the best 5 %, 10 %, ... of the units hold."""
    ordered, total = sorted(values, reverse=True), sum(values)
    return [sum(ordered[: max(1, round(len(ordered) * (c + 1) / _COLUMNS))]) / total for c in range(_COLUMNS)]
