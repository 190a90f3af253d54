"""What a supernet's training unlocked when and why, and how well its subnets did meanwhile, as one figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from kdnas.core.arch import Scalar
from kdnas.core.schedule import FinishedStage, Schedule, Stage, dimension_of
from kdnas.report.style import BROKEN, FAINT, FRONT, GRID, INK, RECOMMENDED, TEACHER, Figure, escaped, styled
from kdnas.report.wording import scaled, shown

_COLOURS = {"depth": FRONT, "width": RECOMMENDED, "bottleneck": "#7a55a3", "skip": BROKEN, "kernel size": "#c9a227"}
"""By elastic dimension; any other one is grey."""
_SCORED = {
    "largest subnet": FRONT,
    "middle subnet": FAINT,
    "smallest subnet of all": TEACHER,
    "smallest that is allowed": "#c9a227",
}
"""Colours of what is scored on the way."""
_LANE, _ACCURACIES, _MARGINS = 21, 210, 120
"""Pixels: height of a value's lane, of the panel of accuracies, of all margins."""
_GAP = 0.5
"""Between the lanes of two choices, in lanes."""
_LEGEND = 66
"""Pixels from the x axis to the legend, roughly."""


def unlocking_figure(
    recorded: Schedule, ladders: Mapping[str, Sequence[Scalar]], *, name: str, teacher: float | None = None
) -> Figure:
    """Return what was unlocked when: a lane for each value of each choice, and below them the accuracies at the checks.

    `ladders` are the values to unlock, largest network first; choices of one value are left out. `teacher` is the
    teacher's validation accuracy.
    """
    stages, starts = recorded.stages, begins(recorded)
    end = starts[-1] + stages[-1].spent
    lanes = _lanes(recorded, ladders)
    scored = _accuracies(recorded)
    drawing = go.Figure()
    for dimension, group in _by_dimension(lanes).items():
        spans = [(lane, *span) for lane in group for span in lane.spans]
        drawing.add_bar(
            orientation="h", name=dimension, y=[lane.place for lane, _, _ in spans],
            base=[starts[first] for _, first, _ in spans],
            x=[(*starts, end)[last + 1] - starts[first] for _, first, last in spans],
            width=0.86, marker={"color": _COLOURS.get(dimension, FAINT)}, textposition="none",
            text=[_span_text(lane, (*starts, end), first, last) for lane, first, last in spans],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    low = max((lane.place for lane in lanes), default=0.0) + 0.7
    drawing.add_scatter(
        x=[begin + 0.5 * finished.spent for begin, finished in zip(starts, stages, strict=True)],
        y=[-0.85] * len(stages), mode="text", text=[str(number) for number in range(1, len(stages) + 1)],
        textfont={"size": 11, "color": INK}, showlegend=False, cliponaxis=False,
        hovertext=[_stage_text(number, finished) for number, finished in enumerate(stages, 1)], hoverinfo="text",
    )  # fmt: skip
    height = round(_LANE * (low + 1.6)) + (_ACCURACIES if scored else 0) + _MARGINS
    drawing = styled(drawing, height=height)
    split = _ACCURACIES / (height - _MARGINS) if scored else 0.0
    drawing.update_yaxes(
        domain=[split, 1.0], range=[low, -1.3], showgrid=False, tickvals=[lane.place for lane in lanes],
        ticktext=[escaped(lane.label) for lane in lanes], tickfont={"size": 11}, ticks="",
    )  # fmt: skip
    _add_accuracies(drawing, recorded, teacher, split)
    for begin in starts[1:]:
        line = {"color": "#8793a3", "width": 1, "dash": "dot"}
        drawing.add_shape(type="line", x0=begin, x1=begin, y0=0, y1=1, yref="paper", line=line, layer="below")
    drawing.update_xaxes(
        title="Share of the supernet’s budget", tickformat=".0%", range=[0, max(end, 1.0) * 1.005], anchor="y2"
    )
    drawing.update_layout(
        barmode="overlay",
        margin={"l": 150, "t": 20, "b": 100},
        legend={"y": -_LEGEND / (height - 120), "traceorder": "normal"},
    )
    if not scored:
        drawing.update_xaxes(anchor="y")
    return Figure(
        name, f"What the supernet unlocked when: {recorded.policy}", _caption(recorded, bool(scored)), drawing, True
    )


def begins(recorded: Schedule) -> list[float]:
    """Return the share of the budget that was spent when each stage began, in [0, 1]."""
    return list(itertools.accumulate((finished.spent for finished in recorded.stages[:-1]), initial=0.0))


def subnets_in_words(stage: Stage) -> str:
    """Return how many subnets a step trains: "4 (sandwich)", "1 of 4 in turn", "1, small ones first"."""
    if stage.in_turn:
        return f"1 of {stage.subnets} in turn"
    if stage.growth:
        return f"{stage.subnets}, small ones first"
    return f"{stage.subnets}{' (sandwich)' if stage.sandwich else ''}"


def why_it_began(stage: Stage) -> str:
    """Return the reason of a stage, with the teacher gap where it was measured."""
    return stage.reason + ("" if stage.gap is None else f" (teacher gap {stage.gap:.1%})")


def what_was_measured(stage: Stage) -> Iterator[str]:
    """Yield what was measured to choose the stage: the cost of each unlock, the gain of each mode."""
    for probe in stage.probes:
        lost = f"{100 * probe.accuracy_lost:+.1f}".replace("-", "−")
        yield f"{probe.dimension}: {lost} points lost, {probe.macs_saved:.1%} of MACs saved"
    for mode, gain in stage.gains.items():
        yield f"{mode}: ln(loss) falls by {gain:.3g} a budget".replace("-", "−")


def how_it_ended(finished: FinishedStage) -> str:
    """Return why a stage ended, and what its panel scored where it was judged."""
    panel = finished.panel
    if panel is None:
        return finished.ended
    scores = ", ".join(
        f"{part} {shown('accuracy', getattr(panel, part))}" for part in ("smallest", "middle", "largest")
    )
    return f"{finished.ended}; then {scores}, mean loss {panel.loss:.4g}"


@dataclass(frozen=True)
class _Lane:
    """A value of a choice: where its lane is, and the first and last stages of each span in which it was allowed."""

    choice: str
    value: Scalar
    place: float
    spans: tuple[tuple[int, int], ...]
    label: str


def _lanes(recorded: Schedule, ladders: Mapping[str, Sequence[Scalar]]) -> list[_Lane]:
    lanes: list[_Lane] = []
    place = 0.0
    for choice, values in sorted(ladders.items(), key=lambda item: (dimension_of(item[0]), item[0])):
        if len(values) < 2:
            continue
        for index, value in enumerate(values):
            allowed = (
                number
                for number, finished in enumerate(recorded.stages)
                if value in finished.stage.allowed.get(choice, ())
            )
            label = f"{choice}  {value}" if index == 0 else str(value)
            lanes.append(_Lane(choice, value, place, _spans(list(allowed)), label))
            place += 1.0
        place += _GAP
    return lanes


def _spans(stages: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (first, last) of each run of consecutive numbers in the ascending `stages`."""
    firsts = [stage for stage in stages if stage - 1 not in stages]
    lasts = [stage for stage in stages if stage + 1 not in stages]
    return tuple(zip(firsts, lasts, strict=True))


def _by_dimension(lanes: Sequence[_Lane]) -> dict[str, list[_Lane]]:
    groups: dict[str, list[_Lane]] = {}
    for lane in lanes:
        groups.setdefault(dimension_of(lane.choice), []).append(lane)
    return groups


def _accuracies(recorded: Schedule) -> dict[str, list[tuple[float, float]]]:
    """Return (share spent, accuracy) of each subnet that was scored, by its name, where there are any."""
    largest, smallest, panels = [], [], []
    for begin, finished in zip(begins(recorded), recorded.stages, strict=True):
        largest += [(check.spent, check.largest) for check in finished.checks]
        smallest += [(check.spent, check.smallest) for check in finished.checks]
        if finished.panel is not None:
            end = begin + finished.spent
            largest.append((end, finished.panel.largest))
            panels.append((end, finished.panel))
    series = {
        "largest subnet": largest,
        "middle subnet": [(end, panel.middle) for end, panel in panels],
        "smallest subnet of all": [(end, panel.smallest) for end, panel in panels],
        "smallest that is allowed": smallest,
    }
    return {name: points for name, points in series.items() if points}


def _add_accuracies(drawing: go.Figure, recorded: Schedule, teacher: float | None, split: float) -> None:
    """Draw the accuracies of scored subnets into a panel of its own, below `split` of the height."""
    series = _accuracies(recorded)
    if not series:
        return
    for name, points in series.items():
        drawing.add_scatter(
            x=[spent for spent, _ in points], y=[value for _, value in points], yaxis="y2", mode="lines+markers",
            name=name, line={"color": _SCORED[name], "width": 1.6}, marker={"size": 5},
            text=[f"{name} {shown('accuracy', value)}<br>{spent:.1%} of the budget spent" for spent, value in points],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    if teacher is not None:
        drawing.add_scatter(
            x=[0, 1], y=[teacher, teacher], yaxis="y2", mode="lines", name="teacher",
            line={"color": INK, "width": 1.2, "dash": "dash"}, hovertemplate="teacher %{y:.2%}<extra></extra>",
        )  # fmt: skip
    drawing.update_layout(
        yaxis2={
            "domain": [0.0, split * 0.9], "title": {"text": "Accuracy"}, "tickformat": ".0%",
            "gridcolor": GRID, "zeroline": False, "linecolor": "#8793a3", "anchor": "x",
        }
    )  # fmt: skip


def _span_text(lane: _Lane, ends: Sequence[float], first: int, last: int) -> str:
    stages = f"stage {first + 1}" if first == last else f"stages {first + 1} to {last + 1}"
    return escaped(f"{lane.choice} = {lane.value}: from {ends[first]:.1%} to {ends[last + 1]:.1%}, {stages}")


def _stage_text(number: int, finished: FinishedStage) -> str:
    stage = finished.stage
    lines = [
        f"stage {number}: {stage.name}",
        f"learning rate × {stage.learning_rate:g}, KD weight × {stage.kd_weight:g}",
        f"subnets a step: {subnets_in_words(stage)}",
        f"began: {why_it_began(stage)}",
        *what_was_measured(stage),
        f"ended: {how_it_ended(finished)}",
    ]
    return "<br>".join(map(escaped, lines))


def _caption(recorded: Schedule, scored: bool) -> str:
    text = (
        "One lane a value of each choice, filled from where it might be sampled; the numbers on top are those of the "
        f"stages in the table below. The budget is "
        f"{scaled(recorded.budget_macs).strip()} multiply-accumulates, measuring included."
    )
    return text if scored else f"{text} This policy scores nothing on the way."
