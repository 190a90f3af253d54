"""A run's training plans: their steps as tables, and what a supernet unlocked when and why as a figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from kdnas.core.arch import Scalar
from kdnas.core.objective import Quantity
from kdnas.core.shrinking import FinishedStage, ShrinkingRecord, Stage, dimension_of
from kdnas.core.words import capitalised, counted
from kdnas.errors import InputError
from kdnas.plan.plan_file import Step, TrainingPlan, find_plan, load_plan
from kdnas.plugins import short_name
from kdnas.record.records import RunRecord
from kdnas.report.figures import BROKEN, FAINT, FRONT, GRID, INK, RECOMMENDED, TEACHER, Figure, escaped, styled
from kdnas.report.table import Table
from kdnas.report.wording import duration, in_html, label, scaled, shown
from kdnas.training.supernet.shrinking_file import find_shrinking, read_shrinking


@dataclass(frozen=True)
class FoundPlan:
    """A plan file of a run. `plan` is None where it is a supernet's alone; `problem` is why it cannot be read."""

    path: Path
    plan: TrainingPlan | None = None
    recorded: tuple[tuple[str, ShrinkingRecord, Mapping[str, Sequence[Scalar]]], ...] = ()
    """Of each recorded supernet: the step's name, its stages, and the values it was to unlock, by choice."""
    problem: str = ""


def find_plans(run: RunRecord) -> tuple[FoundPlan, ...]:
    """Return the plans in the run's folder: the supernet's own stages, the plan to follow, and those of trainings."""
    planned = map(find_plan, [run.folder, *sorted(run.folder.glob("training/*/"))])
    return tuple(itertools.chain(_supernets(find_shrinking(run.folder / "supernet")), _plans(planned)))


def draw_plans(plans: Sequence[FoundPlan], score: Quantity) -> list[list[Figure]]:
    """Return for each plan the figures of its recorded supernets, which were scored by `score`."""
    figures: list[list[Figure]] = []
    numbers = itertools.count(1)
    for found in plans:
        teacher = None if found.plan is None else found.plan.teacher.score
        figures.append(
            [
                unlocking_figure(recorded, ladders, score, name=f"plan-{next(numbers)}", teacher=teacher)
                for _, recorded, ladders in found.recorded
                if recorded.stages
            ]
        )
    return figures


def plans_html(run: RunRecord, plans: Sequence[FoundPlan], drawings: Sequence[str]) -> str:
    """Return the report's section on plans, empty without any; `drawings` are each one's figures as HTML."""
    if not plans:
        return ""
    parts = ["<section class=plans><h2>Training plans</h2>"]
    for found, drawing in zip(plans, drawings, strict=True):
        where = found.path.relative_to(run.folder)
        if found.problem:
            parts.append(f"<p class='notice'>{in_html(where)} cannot be shown: {in_html(found.problem)}</p>")
            continue
        if found.plan is not None:
            parts.append(f"<h3>{in_html(_title(found.plan, where))}</h3>{_plan_html(found.plan, run)}")
        else:
            parts.append(f"<h3>The run’s supernet: {in_html(where)}</h3>")
        parts.append(f'<div class="figures">{drawing}</div>' if drawing else "")
        for name, recorded, _ in found.recorded:
            parts.append(stage_table(recorded, run.score, f"Stages of {name}").html())
    return "".join(parts) + "</section>"


def stage_table(recorded: ShrinkingRecord, score: Quantity, name: str) -> Table:
    """Return a supernet's stages as a table called `name`: settings, what was allowed, and why each began and ended.

    They were scored by `score`.
    """
    headings = ["#", "stage", "allowed", "budget", "steps", "learning rate", "subnets a step", "KD weight"]
    rows = []
    before: Mapping[str, Sequence[Scalar]] = {}
    for number, (begin, finished) in enumerate(zip(begins(recorded), recorded.stages, strict=True), 1):
        stage = finished.stage
        rows.append(
            [
                str(number),
                stage.name,
                _change(before, stage.allowed),
                f"{begin:.1%} to {begin + finished.spent:.1%}",
                str(finished.steps),
                f"× {stage.learning_rate:g}",
                subnets_in_words(stage),
                f"× {stage.kd_weight:g}",
                why_it_began(stage),
                "; ".join(what_was_measured(stage, score)) or "–",
                how_it_ended(finished, score),
            ]
        )
        before = stage.allowed
    headings += ["why it began", "measured before it", "how it ended"]
    return Table.of_texts(name, headings, rows, text=(1, 3, 6), long=(2, 8, 9, 10))


def _change(before: Mapping[str, Sequence[Scalar]], allowed: Mapping[str, Sequence[Scalar]]) -> str:
    if all(len(values) == 1 for values in allowed.values()):
        return "the largest network alone"
    if before == allowed:
        return "as before"
    new = {
        name: [value for value in values if value not in before.get(name, ())]
        for name, values in allowed.items()
        if len(values) > 1
    }
    text = "; ".join(f"{name} {', '.join(map(str, added))}" for name, added in new.items() if added)
    return f"also {text}" if before else text


def _supernets(path: Path) -> Iterator[FoundPlan]:
    if path.is_file():
        try:
            recorded = read_shrinking(path)
        except InputError as error:
            yield FoundPlan(path, problem=str(error))
            return
        last: Mapping[str, Sequence[Scalar]] = recorded.stages[-1].stage.allowed if recorded.stages else {}
        yield FoundPlan(path, recorded=(("the supernet", recorded, last),))


def _plans(paths: Iterable[Path]) -> Iterator[FoundPlan]:
    for path in paths:
        if not path.is_file():
            continue
        try:
            plan, _ = load_plan(path)
            recorded = tuple(
                (step.name, step.recorded, step.space.choices)
                for step in plan.steps
                if step.kind == "supernet" and step.recorded is not None
            )
        except InputError as error:
            yield FoundPlan(path, problem=str(error).partition("\n")[0])
            continue
        yield FoundPlan(path, plan, recorded)


def _title(plan: TrainingPlan, where: Path) -> str:
    what = "Training of student" if where.parent.name else "The plan to follow for student"
    return f"{what} {plan.student.arch_id}, route {plan.route}: {where}"


def _plan_html(plan: TrainingPlan, run: RunRecord) -> str:
    budget = plan.budget
    lead = (
        f"Chosen because: {plan.why}. Budget: the work of {counted(budget.epochs, 'epoch')} of the student on "
        f"{budget.samples:,} samples, {scaled(budget.macs).strip()} multiply-accumulates; teachers’ forward passes are "
        "not counted."
    )
    if plan.supernet is not None:
        lead += f" Nor is the run’s supernet, {scaled(plan.supernet.macs).strip()}, which the search paid for."
    rows = [[step.name, step.kind, *_step_cells(step), f"{step.share:.1%}"] for step in plan.steps]
    headings = ["step", "kind", "teacher", "begins from", "for", "learning rate", "budget"]
    measured = [
        [
            item.route,
            str(item.epochs),
            shown(run.score, item.score),
            duration(item.train_seconds) if item.score is not None else "–",
            item.note or "–",
        ]
        for item in plan.measured
    ]
    tried = ["route", "epochs", f"validation {label(run.score.name)}", "time", "note"]
    tables = (
        Table.of_texts("Steps", headings, rows, text=range(5)),
        Table.of_texts("Measured routes", tried, measured, long=(4,)),
    )
    return f"<p class=lead>{in_html(lead)}</p>{''.join(table.html() for table in tables)}"


def _step_cells(step: Step) -> list[str]:
    if step.kind == "distil":
        return [step.teacher, step.init, counted(step.epochs, "epoch"), f"× {step.learning_rate:g}"]
    return [step.teacher, step.init, f"policy {short_name(step.settings.shrinking.policy)}", "by stage"]


_COLOURS = {"depth": FRONT, "width": RECOMMENDED, "bottleneck": "#7a55a3", "skip": BROKEN, "kernel size": "#c9a227"}
"""By elastic dimension; any other one is grey."""
_SCORED = {
    "largest subnet": FRONT,
    "middle subnet": FAINT,
    "smallest subnet of all": TEACHER,
    "smallest that is allowed": "#c9a227",
}
"""Colours of what is scored on the way."""
_LANE, _SCORES, _MARGINS = 21, 210, 120
"""Pixels: height of a value's lane, of the panel of scores, of all margins."""
_GAP = 0.5
"""Between the lanes of two choices, in lanes."""
_LEGEND = 66
"""Pixels from the x axis to the legend, roughly."""


def unlocking_figure(
    recorded: ShrinkingRecord,
    ladders: Mapping[str, Sequence[Scalar]],
    score: Quantity,
    *,
    name: str,
    teacher: float | None = None,
) -> Figure:
    """Return what was unlocked when: a lane for each value of each choice, and below them the scores at the checks.

    `ladders` are the values to unlock, largest network first; choices of one value are left out. `teacher` is the
    teacher's validation `score`.
    """
    stages, starts = recorded.stages, begins(recorded)
    end = starts[-1] + stages[-1].spent
    lanes = _lanes(recorded, ladders)
    scored = _scores(recorded, score)
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
        hovertext=[_stage_text(number, finished, score) for number, finished in enumerate(stages, 1)], hoverinfo="text",
    )  # fmt: skip
    height = round(_LANE * (low + 1.6)) + (_SCORES if scored else 0) + _MARGINS
    drawing = styled(drawing, height=height)
    split = _SCORES / (height - _MARGINS) if scored else 0.0
    drawing.update_yaxes(
        domain=[split, 1.0], range=[low, -1.3], showgrid=False, tickvals=[lane.place for lane in lanes],
        ticktext=[escaped(lane.label) for lane in lanes], tickfont={"size": 11}, ticks="",
    )  # fmt: skip
    if scored:
        _add_scores(drawing, scored, score, teacher, split)
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
        name,
        f"What the supernet unlocked when: {short_name(recorded.policy)}",
        _caption(recorded, bool(scored)),
        drawing,
        True,
    )


def begins(recorded: ShrinkingRecord) -> list[float]:
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


def what_was_measured(stage: Stage, score: Quantity) -> Iterator[str]:
    """Yield what was measured to choose the stage: the cost of each unlock, the gain of each mode."""
    for probe in stage.probes:
        before, after = (score.from_share(share) for share in (probe.score + probe.score_lost, probe.score))
        lost = score.gain(before, after)
        signed = f"{'−' if lost < 0 else '+'}{score.shown_points(abs(lost))}"
        yield f"{probe.dimension}: {signed} lost, {probe.macs_saved:.1%} of MACs saved"
    for mode, gain in stage.gains.items():
        yield f"{mode}: ln(loss) falls by {gain:.3g} a budget".replace("-", "−")


def how_it_ended(finished: FinishedStage, score: Quantity) -> str:
    """Return why a stage ended, and what its panel scored where it was judged."""
    panel = finished.panel
    if panel is None:
        return finished.ended
    shares = {"smallest": panel.smallest, "middle": panel.middle, "largest": panel.largest}
    scores = ", ".join(f"{part} {score.shown(score.from_share(share))}" for part, share in shares.items())
    return f"{finished.ended}; then {scores}, mean loss {panel.loss:.4g}"


@dataclass(frozen=True)
class _Lane:
    """A value of a choice: where its lane is, and the first and last stages of each span in which it was allowed."""

    choice: str
    value: Scalar
    place: float
    spans: tuple[tuple[int, int], ...]
    label: str


def _lanes(recorded: ShrinkingRecord, ladders: Mapping[str, Sequence[Scalar]]) -> list[_Lane]:
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


def _scores(recorded: ShrinkingRecord, score: Quantity) -> dict[str, list[tuple[float, float]]]:
    """Return (share spent, score) of each subnet that was scored, by its name, where there are any."""
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
    return {
        name: [(spent, score.from_share(share)) for spent, share in points] for name, points in series.items() if points
    }


def _add_scores(
    drawing: go.Figure,
    scored: Mapping[str, Sequence[tuple[float, float]]],
    score: Quantity,
    teacher: float | None,
    split: float,
) -> None:
    """Draw the scores of subnets into a panel of its own, below `split` of the height."""
    for name, points in scored.items():
        drawing.add_scatter(
            x=[spent for spent, _ in points], y=[value for _, value in points], yaxis="y2", mode="lines+markers",
            name=name, line={"color": _SCORED[name], "width": 1.6}, marker={"size": 5},
            text=[f"{name} {score.shown(value)}<br>{spent:.1%} of the budget spent" for spent, value in points],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    if teacher is not None:
        drawing.add_scatter(
            x=[0, 1], y=[teacher, teacher], yaxis="y2", mode="lines", name="teacher",
            line={"color": INK, "width": 1.2, "dash": "dash"}, text=[f"teacher {score.shown(teacher)}"] * 2,
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    drawing.update_layout(
        yaxis2={
            "domain": [0.0, split * 0.9], "title": {"text": capitalised(label(score.name))},
            "tickformat": ".0%" if score.is_fraction else "",
            "gridcolor": GRID, "zeroline": False, "linecolor": "#8793a3", "anchor": "x",
        }
    )  # fmt: skip


def _span_text(lane: _Lane, ends: Sequence[float], first: int, last: int) -> str:
    stages = f"stage {first + 1}" if first == last else f"stages {first + 1} to {last + 1}"
    return escaped(f"{lane.choice} = {lane.value}: from {ends[first]:.1%} to {ends[last + 1]:.1%}, {stages}")


def _stage_text(number: int, finished: FinishedStage, score: Quantity) -> str:
    stage = finished.stage
    lines = [
        f"stage {number}: {stage.name}",
        f"learning rate × {stage.learning_rate:g}, KD weight × {stage.kd_weight:g}",
        f"subnets a step: {subnets_in_words(stage)}",
        f"began: {why_it_began(stage)}",
        *what_was_measured(stage, score),
        f"ended: {how_it_ended(finished, score)}",
    ]
    return "<br>".join(map(escaped, lines))


def _caption(recorded: ShrinkingRecord, scored: bool) -> str:
    text = (
        "One lane a value of each choice, filled from where it might be sampled; the numbers on top are those of the "
        f"stages in the table below. The budget is "
        f"{scaled(recorded.budget_macs).strip()} multiply-accumulates, measuring included."
    )
    return text if scored else f"{text} This policy scores nothing on the way."
