"""Parallel coordinates: every choice, tuned setting and objective as an axis, every student as a line.

Drawn as plain lines rather than with plotly's `parcoords`, which needs WebGL, can scale no axis logarithmically and
cannot mark a teacher that is no point of the space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from kdnas.core.objective import Quantity
from kdnas.record.front import as_member, comparable, front
from kdnas.record.records import FrontMember, RunRecord, TrialRecord
from kdnas.report.architecture import architecture_lines
from kdnas.report.figures import INK, TEACHER, Figure, blend, escaped, is_log, styled, teacher_value
from kdnas.report.searched import Searched, losses_of, searched
from kdnas.report.wording import OFF, label, number, shown

MOST_LINES = 200
"""Lines drawn at most: more can neither be distinguished nor drawn quickly."""


def parallel_figure(run: RunRecord) -> Figure:
    """Return parallel coordinates over all that was searched and every objective: one line a student."""
    score = run.score
    everyone, values = losses_of(run, comparable(run))
    losses = {trial.number: value for trial, value in zip(everyone, values, strict=True)}
    on_front = {member.trial.number: member for member in front(run)}
    ranked = sorted(everyone, key=lambda trial: (trial.number not in on_front, losses[trial.number]))
    scored = ranked[:MOST_LINES]
    members = {trial.number: on_front.get(trial.number) or as_member(run, trial) for trial in scored}
    axes = _axes(run, scored, list(members.values()))
    drawing = go.Figure()
    found = [losses[trial.number] for trial in scored]
    best, worst = min(found, default=0.0), max(found, default=1.0)
    lines: list[dict[str, Any]] = []
    for trial in sorted(scored, key=lambda trial: -losses[trial.number]):
        member, thick = members[trial.number], trial.number in on_front
        jitter = 0.07 * (((trial.number * 0.618034) % 1.0) - 0.5)
        heights = [axis.height(member, jitter) for axis in axes]
        colour = blend((worst - losses[trial.number]) / ((worst - best) or 1.0))
        lines.append({
            "type": "scatter", "x": list(range(len(axes))), "y": heights, "mode": "lines", "showlegend": False,
            "opacity": 1.0 if thick else 0.45, "line": {"color": colour, "width": 3 if thick else 1.1},
            "hovertemplate": f"trial {trial.number}{', on the front' if thick else ''}<br>"
            f"{label(score.name)} {score.shown(member.values[score.name])}<br>"
            f"{'<br>'.join(map(escaped, architecture_lines(trial.arch)))}<extra></extra>",
        })  # fmt: skip
    # All at once: plotly's time for one more trace grows with those it has.
    drawing.add_traces(lines)
    _add_axes(drawing, axes)
    _add_teacher_on_axes(drawing, run, axes)
    drawing.add_scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"color": [score.minimised(best)], "showscale": True, "size": 0.1,
                "cmin": min(map(score.minimised, (best, worst))), "cmax": max(map(score.minimised, (best, worst))) or 1,
                "colorscale": [[i / 10, blend(i / 10 if score.direction == "maximize" else 1 - i / 10)]
                               for i in range(11)],
                "colorbar": {"title": {"text": f"search<br>{label(score.name)}"}, "thickness": 12, "len": 0.9,
                             "tickformat": ".0%" if score.is_fraction else ""}},
    )  # fmt: skip
    # Titles of many axes are slanted, so the longest of them decides how much room they need below.
    below = max(90, 30 + round(4.3 * max((len(axis.title) for axis in axes), default=0))) if len(axes) > 6 else 90
    drawing = styled(drawing, height=380 + below)
    drawing.update_layout(
        hovermode="closest", margin={"l": 40, "r": 20, "t": 30, "b": below}, legend={"y": -(below - 14) / 350}
    )
    drawing.update_xaxes(
        tickvals=list(range(len(axes))), ticktext=[escaped(axis.title) for axis in axes],
        showgrid=False, showline=False, range=[-0.5, len(axes) - 0.5], tickangle=-35 if len(axes) > 6 else 0, title="",
    )  # fmt: skip
    drawing.update_yaxes(visible=False, range=[-0.09, 1.09])
    caption = (
        "Each line is one student, coloured by the score of the search; thick lines stand on the front. Lines at "
        "the same choice are spread a little so that they stay distinct; “off” is a choice that this student does "
        "not have. What took one value has no axis."
    )
    if run.teacher is not None:
        caption += " The teacher is no point of the space, so its stars stand on the axes of the objectives only."
    if len(everyone) > len(scored):
        caption += f" Of {len(everyone)} students only the front and the best are drawn, {len(scored)} in all."
    return Figure("parallel", "Choices and what came of them", caption, drawing, wide=True)


@dataclass(frozen=True)
class _Axis:
    """One vertical axis: a choice (`ticks` are its values), a tuned setting or a quantity (from `low` to `high`)."""

    title: str
    name: str
    ticks: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    chosen: Mapping[int, Any] = field(default_factory=dict)
    """Of what was searched: the value by trial number."""
    of: Quantity | None = None
    """The score, where it is the score's axis."""

    @property
    def is_quantity(self) -> bool:
        """Whether it is something known of students and the teacher, and nothing searched."""
        return not self.chosen

    def position(self, value: float) -> float:
        """Return where a number stands on the axis: 0 at the bottom, 1 at the top."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        return ((math.log(value) if self.log else value) - low) / ((high - low) or 1.0)

    def height(self, member: FrontMember, jitter: float) -> float | None:
        """Return where the line of `member` crosses the axis; None where its value is not known."""
        value = member.values.get(self.name) if self.is_quantity else self.chosen[member.trial.number]
        if self.ticks:
            return self.ticks.index(value) / max(len(self.ticks) - 1, 1) + jitter
        return None if value is None else self.position(value)

    def shown(self, value: float) -> str:
        """Return a number on the axis with its unit."""
        return shown(self.of or self.name, value) if self.is_quantity else number(value)


def _axes(run: RunRecord, trials: Sequence[TrialRecord], members: Sequence[FrontMember]) -> list[_Axis]:
    axes = [_searched_axis(setting, trials) for setting in searched(run, trials)]
    for objective in run.objectives:
        known = [member.values[objective.name] for member in members if objective.name in member.values]
        if run.teacher is not None and (teacher := teacher_value(run, objective.name)) is not None:
            known.append(teacher)
        if known:
            of = run.score if objective == run.score else None
            ends = min(known), max(known)
            axes.append(_Axis(label(objective.name), objective.name, (), *ends, log=is_log(known), of=of))
    return axes


def _searched_axis(setting: Searched, trials: Sequence[TrialRecord]) -> _Axis:
    if setting.range:
        low, high = (float(value) for value in setting.domain)
        chosen: dict[int, Any] = {t.number: v for t, v in zip(trials, setting.values, strict=True)}
        return _Axis(setting.name, setting.name, (), low, high, setting.log, chosen)
    values = [OFF if value is None else value for value in setting.values]
    taken = set(values)
    ticks = (*((OFF,) if OFF in taken else ()), *(value for value in setting.domain if value in taken))
    return _Axis(setting.name, setting.name, ticks, chosen={t.number: v for t, v in zip(trials, values, strict=True)})


def _add_axes(drawing: go.Figure, axes: Sequence[_Axis]) -> None:
    for i, axis in enumerate(axes):
        drawing.add_shape(type="line", x0=i, x1=i, y0=-0.03, y1=1.03, line={"color": "#8793a3", "width": 1})
        if axis.ticks:
            marks = [(k / max(len(axis.ticks) - 1, 1), str(value)) for k, value in enumerate(axis.ticks)]
        else:
            marks = [(0.0, axis.shown(axis.low)), (1.0, axis.shown(axis.high))]
        for height, text in marks:
            drawing.add_annotation(
                x=i, y=height, text=escaped(text), showarrow=False, xanchor="right", xshift=-4,
                yshift=0 if axis.ticks else (9 if height else -9),
                font={"size": 10, "color": INK}, bgcolor="rgba(255,255,255,0.75)", borderpad=0,
            )  # fmt: skip


def _add_teacher_on_axes(drawing: go.Figure, run: RunRecord, axes: Sequence[_Axis]) -> None:
    places = [
        (i, axis.position(value), f"teacher: {label(axis.name)} {axis.shown(value)}")
        for i, axis in enumerate(axes)
        if axis.is_quantity and (value := teacher_value(run, axis.name)) is not None
    ]
    if places:
        drawing.add_scatter(
            x=[place[0] for place in places], y=[place[1] for place in places], mode="markers", name="teacher",
            marker={"symbol": "star", "size": 15, "color": TEACHER, "line": {"color": "white", "width": 1}},
            text=[place[2] for place in places], hovertemplate="%{text}<extra></extra>", showlegend=True,
        )  # fmt: skip
