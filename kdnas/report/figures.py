"""The figures of a report, how they look, and what they are made of: computed from the record first, drawn second."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from kdnas.core import hypervolume as volumes
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import Quantity, breaches, minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.words import capitalised, counted
from kdnas.plan.training_folder import FullTraining, full_trainings
from kdnas.record.front import (
    Recommendation,
    candidates,
    comparable,
    doubts,
    front,
    hypervolume_over_time,
    measured_values,
    once,
    recommended,
)
from kdnas.record.records import FrontMember, RunRecord, TrialRecord
from kdnas.report.architecture import architecture_lines
from kdnas.report.searched import Importance
from kdnas.report.tables import other_quantities
from kdnas.report.wording import (
    axis_title,
    bound_in_words,
    duration,
    front_legend,
    front_score,
    label,
    reason_in_words,
    reference_in_words,
    scaled,
    shown,
    shown_interval,
)

FRONT, FAINT, TEACHER, RECOMMENDED, BROKEN, FULL = "#1d5fa8", "#9fb0c3", "#d1480f", "#0f8a6a", "#b6505f", "#7a55a3"
GRID, INK = "#e6eaf0", "#2b3440"
_LOG_RANGE = 10.0
"""A ratio of largest to smallest value above which an axis is logarithmic."""


@dataclass(frozen=True)
class Figure:
    """A drawn figure, a one-line title and a note on how to read it. `wide` ones span the page."""

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
    """Return the teacher's value of a quantity (on the validation split for the score); None when it is not known."""
    if run.teacher is None:
        return None
    return run.teacher.score if name == run.score.name else run.teacher.values.get(name)


def score_axis(score: Quantity, values: Sequence[float]) -> dict[str, Any]:
    """Return how plotly marks and limits the axis of scores among which `values` are."""
    if score.is_fraction:
        return {"tickformat": ".0%" if _spread(values) > 0.05 else ".1%", "range": list(_padded(values))}
    if is_log(values):
        low, high = min(values) / 1.2, max(values) * 1.2
        marks = round_ticks(low, high, log=True)
        ends = [math.log10(low), math.log10(high)]
        return {"type": "log", "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks], "range": ends}
    return {"range": list(_padded(values))}


def blend(share: float) -> str:
    """Return the colour of a relative score in [0, 1], 1 the best: amber over teal to deep blue, readable on white."""
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


_LOWER = "scored at a lower rung"


def cost_names(run: RunRecord) -> list[str]:
    """Return the quantities the score is drawn against: MACs, latency, then the rest that any student has."""
    known = {name for trial in run.trials for name in measured_values(trial)} - {run.score.name}
    order = ["macs", "latency_ms", *(o.name for o in run.objectives), "params", *other_quantities(run)]
    return [name for name in dict.fromkeys(order) if name in known]


def staircase(run: RunRecord, members: Sequence[FrontMember], name: str) -> list[FrontMember]:
    """Return the members that stand on the front of the score against `name` alone, cheapest first."""
    axes = (run.quantities.get(name, Quantity(name, "", "minimize", "cheap")), run.score)
    having = [member for member in members if name in member.values and run.score.name in member.values]
    values = minimised([member.values for member in having], axes)
    kept = [(row[0], member) for row, member, on in zip(values, having, non_dominated(values), strict=True) if on]
    return [member for _, member in sorted(kept, key=lambda pair: float(pair[0]))]


def score_figure(run: RunRecord, name: str) -> Figure:
    """Return the score against the quantity `name`: every student, the front, the recommended one and the teacher."""
    drawing, score = go.Figure(), run.score
    trained = full_trainings(run.folder)[0]
    xs, ys = _add_scored(drawing, run, name)
    members = front(run)
    if members:
        _add_front(drawing, run, members, name)
        xs += [member.values[name] for member in members if name in member.values]
        ys += [end for m in members for end in score.ends(m.values[score.name], m.score_ci95)]
    for total, fully in zip((xs, ys), _add_full_trainings(drawing, run, trained, name), strict=True):
        total += fully
    if run.teacher is not None and name in run.teacher.values:
        xs.append(run.teacher.values[name])
        ys.append(run.teacher.score)
        drawing.add_scatter(
            x=[run.teacher.values[name]], y=[run.teacher.score], mode="markers", name="teacher",
            marker={"symbol": "star", "size": 17, "color": TEACHER, "line": {"color": "white", "width": 1}},
            text=[f"teacher {escaped(run.teacher.name)}<br>{label(score.name)} {score.shown(run.teacher.score)}<br>"
                  f"{label(name)} {shown(name, run.teacher.values[name], score)}"],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    elif run.teacher is not None:
        drawing.add_hline(
            run.teacher.score, line={"color": TEACHER, "dash": "dash", "width": 1.5}, annotation_text="★ teacher",
            annotation_font_color=TEACHER, annotation_position="bottom left",
        )  # fmt: skip
        ys.append(run.teacher.score)
    for bound in run.constraints:
        if bound.name == name:
            drawing.add_vline(bound.bound, line={"color": BROKEN, "dash": "dot", "width": 1.5})
            xs.append(bound.bound)
    for goal in run.goals:
        drawing.add_hline(goal.bound, line={"color": BROKEN, "dash": "dot", "width": 1.5})
        ys.append(goal.bound)
    vertical = score_axis(score, ys) if ys else {}
    xs += _add_infeasible(drawing, run, name, vertical)
    log = is_log(xs)
    drawing.update_xaxes(title=axis_title(name) + (", log scale" if log else ""), type="log" if log else "linear")
    if log:
        marks = round_ticks(min(xs) / 2, max(xs) * 2, log=True)
        drawing.update_xaxes(tickvals=marks, ticktext=[scaled(value).strip() for value in marks])
    drawing.update_yaxes(title=capitalised(front_score(run)), **vertical)
    bounds = " and ".join(bound_in_words(bound, score) for bound in run.constraints if bound.name == name)
    caption = _score_caption(run, members, trained) + (
        f" The dotted line is the constraint: {bounds}." if bounds else ""
    )
    title = f"{capitalised(label(score.name))} against {label(name)}"
    return Figure(f"{score.name}-{name}", title, caption, styled(drawing))


@once
def growth(run: RunRecord) -> dict[Fidelity, list[tuple[int, float, float]]]:
    """Return how the hypervolume of the scores of each fidelity grew (`hypervolume_over_time`), the briefest first."""
    complete = [trial for trial in run.trials if trial.state == "complete"]
    fidelities = sorted({trial.fidelity for trial in complete}, key=lambda fidelity: fidelity.amount)
    of = {each: [trial for trial in complete if trial.fidelity == each] for each in fidelities}
    curves = {each: hypervolume_over_time(run, of[each], steps=complete) for each in fidelities}
    return {each: curve for each, curve in curves.items() if curve}


def hypervolume_figure(run: RunRecord, over: str) -> Figure:
    """Return how the hypervolume grew, over "trials" or over "time", with what the teacher alone would give.

    Scores of different fidelities do not compare, so each fidelity has a line of its own, and every line a step for
    each score of the search: one that is not its own leaves it as it was.
    """
    drawing = go.Figure()
    unit, xs, fidelities = "s", [0.0], [*growth(run)]
    for fidelity, curve in growth(run).items():
        longest = curve[-1][1]
        unit, scale = ("h", 3600.0) if longest > 7200 else ("min", 60.0) if longest > 180 else ("s", 1.0)
        xs = [*map(float, range(1, len(curve) + 1))] if over == "trials" else [s / scale for _, s, _ in curve]
        highest = fidelity == fidelities[-1]
        own = {trial.number for trial in run.trials if trial.fidelity == fidelity}
        drawing.add_scatter(
            x=xs, y=[volume for _, _, volume in curve], mode="lines+markers",
            name="students found so far" if len(fidelities) == 1 else f"scores {fidelity.reached}",
            line={"color": FRONT if highest else FAINT, "width": 2.5 if highest else 1.3, "shape": "hv"},
            marker={"size": [4 if trial in own else 0 for trial, _, _ in curve]},
            text=[f"trial {trial}, {seconds:.0f} s<br>hypervolume {volume:.4g}" for trial, seconds, volume in curve],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    teacher = _teacher_values(run)
    if drawing.data and teacher:
        top = volumes.hypervolume(minimised([teacher], run.objectives), _reference_row(run))
        drawing.add_scatter(
            x=[xs[0], xs[-1]], y=[top, top], mode="lines+markers", name="teacher alone",
            line={"color": TEACHER, "dash": "dash", "width": 1.5}, marker={"symbol": "star", "size": 12},
            hovertemplate=f"teacher alone<br>hypervolume {top:.4g}<extra></extra>",
        )  # fmt: skip
    since = "Time since the first trial" if run.supernet is None else "Time since the supernet’s training began"
    scores = "Students scored" if len(fidelities) == 1 else "Scores, of whichever rung"
    drawing.update_xaxes(title=scores if over == "trials" else f"{since} ({unit})")
    drawing.update_yaxes(title="Hypervolume", rangemode="tozero")
    caption = (
        f"Volume of objective space that the students found so far dominate, below the reference point "
        f"({reference_in_words(run)}). "
        "Made of the search’s own scores; a flat end means that further trials of this kind found nothing better."
    )
    if len(fidelities) > 1:
        caption += (
            f" Each line counts the scores of one rung alone, marked by dots; the blue one those "
            f"{fidelities[-1].reached}, of which the front was drawn."
        )
    caption += "" if run.teacher is None else " The teacher’s line is zero where it lies beyond the reference point."
    return Figure(f"hypervolume-{over}", f"Hypervolume over {over}", caption, styled(drawing))


def importance_figure(run: RunRecord, importance: Importance) -> Figure:
    """Return one bar a choice: how much of the scores' variance it explains."""
    pairs = sorted(importance.shares.items(), key=lambda pair: pair[1])
    drawing = go.Figure(
        go.Bar(
            x=[share for _, share in pairs], y=[escaped(name) for name, _ in pairs], orientation="h",
            marker={"color": FRONT}, text=[f"{100 * share:.0f} %" for _, share in pairs], textposition="outside",
            cliponaxis=False, hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )  # fmt: skip
    largest = max((share for _, share in pairs), default=1.0)
    drawing.update_xaxes(title="Share of explained variance", tickformat=".0%", range=[0, 1.18 * largest or 1.0])
    drawing = styled(drawing, height=max(240, 120 + 26 * len(pairs)))
    drawing.update_layout(showlegend=False, margin={"b": 60})
    drawing.update_yaxes(showgrid=False, automargin=True, tickfont={"size": 12})
    teacher = "" if run.teacher is None else f" The teacher ({run.score.shown(run.teacher.score)}) takes no part."
    title = f"Importance of each choice for {label(run.score.name)}"
    return Figure("importance", title, importance.explanation + teacher, drawing)


def _add_scored(drawing: go.Figure, run: RunRecord, name: str) -> tuple[list[float], list[float]]:
    groups: dict[str, list[TrialRecord]] = {_LOWER: [], "scored by the search": [], "breaks a constraint": []}
    full, score = {trial.number for trial in comparable(run)}, run.score.name
    for trial in run.trials:
        values = measured_values(trial)
        if trial.state in ("complete", "infeasible") and name in values and math.isfinite(values.get(score, math.nan)):
            broken = trial.state == "infeasible" or bool(breaches(values, run.limits))
            scored = "scored by the search" if trial.number in full else _LOWER
            groups["breaks a constraint" if broken else scored].append(trial)
    xs: list[float] = []
    ys: list[float] = []
    for title, trials in groups.items():
        if not trials:
            continue
        rows = [measured_values(trial) for trial in trials]
        broken = title == "breaks a constraint"
        drawing.add_scatter(
            x=[row[name] for row in rows], y=[row[score] for row in rows], mode="markers", name=title,
            marker={"color": BROKEN if broken else FAINT, "size": 8, "opacity": 0.7,
                    "symbol": "x" if broken else "circle-open" if title == _LOWER else "circle"},
            text=[_hover(run, trial, name, row) for trial, row in zip(trials, rows, strict=True)],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        xs += [row[name] for row in rows]
        ys += [row[score] for row in rows]
    return xs, ys


def _add_front(drawing: go.Figure, run: RunRecord, members: Sequence[FrontMember], name: str) -> None:
    on_front = {member.trial.number for member in members}
    beaten = [m for m in candidates(run) if m.trial.repeats and m.trial.number not in on_front and name in m.values]
    if beaten:
        _add_members(drawing, run, beaten, name, "retrained, dominated", FAINT, hollow=True)
    steps = staircase(run, members, name)
    drawing.add_scatter(
        x=[member.values[name] for member in steps], y=[m.values[run.score.name] for m in steps], mode="lines",
        line={"color": FRONT, "width": 2, "shape": "hv"}, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    having = [member for member in members if name in member.values]
    _add_members(drawing, run, having, name, front_legend(run, members), FRONT)
    chosen = recommended(run)
    if chosen is not None and name in (values := chosen.member.values):
        drawing.add_scatter(
            x=[values[name]], y=[values[run.score.name]], mode="markers", name=ring_in_words(run, chosen),
            hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 18, "color": RECOMMENDED, "line": {"width": 2.5}},
        )  # fmt: skip


def ring_in_words(run: RunRecord, chosen: Recommendation) -> str:
    """Return what the ring about `chosen` means: nobody recommends a student that something speaks against."""
    return chosen.words if doubts(run, chosen.member) else "recommended"


def _add_members(
    drawing: go.Figure,
    run: RunRecord,
    members: Sequence[FrontMember],
    name: str,
    title: str,
    colour: str,
    hollow: bool = False,
) -> None:
    drawing.add_scatter(
        x=[member.values[name] for member in members], y=[member.values[run.score.name] for member in members],
        mode="markers", name=title,
        marker={"color": colour, "size": 9, "symbol": "circle-open" if hollow else "circle"},
        error_y=_interval_bars(run.score, members),
        text=[_hover(run, member.trial, name, member.values, member.score_ci95) for member in members],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _interval_bars(score: Quantity, members: Sequence[FrontMember]) -> dict[str, Any]:
    """Return the members' intervals as plotly takes them; none of a fraction leaves 0 to 100 %."""
    halves = [(member.values[score.name], member.score_ci95 or 0.0) for member in members]
    up = [min(half, 1 - mean) if score.is_fraction else half for mean, half in halves]
    down = [min(half, mean) for mean, half in halves]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.3, "width": 4}


def _add_full_trainings(
    drawing: go.Figure, run: RunRecord, trained: Sequence[FullTraining], name: str
) -> tuple[list[float], list[float]]:
    """Draw what `kdnas train` made of students of this run; return where they stand."""
    costs = {trial.arch.arch_id: measured_values(trial) for trial in run.trials if trial.state == "complete"}
    found = [t for t in trained if name in costs.get(t.arch_id, {})]
    if not found:
        return [], []
    xs, ys = [costs[training.arch_id][name] for training in found], [training.score for training in found]
    drawing.add_scatter(
        x=xs, y=ys, mode="markers", name="fully trained", marker={"symbol": "diamond", "size": 11, "color": FULL},
        text=[f"{training.arch_id}, trained for {counted(training.epochs, 'epoch')}<br>{label(run.score.name)} "
              f"{run.score.shown(training.score)}, test {run.score.shown(training.test_score)}"
              for training in found],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    return xs, ys


def _add_infeasible(drawing: go.Figure, run: RunRecord, name: str, vertical: Mapping[str, Any]) -> list[float]:
    """Draw students refused before training as ticks on the worse edge of the axis; return where they stand."""
    worst = 0 if run.score.direction == "maximize" else 1
    edge = vertical.get("range", [0.0, 0.0])[worst]
    floor = 10**edge if vertical.get("type") == "log" else edge
    refused = [
        trial
        for trial in run.trials
        if trial.state == "infeasible" and name in (values := measured_values(trial)) and run.score.name not in values
    ]
    if not refused:
        return []
    xs = [measured_values(trial)[name] for trial in refused]
    drawing.add_scatter(
        x=xs, y=[floor] * len(xs), mode="markers", name="refused untrained", cliponaxis=False,
        marker={"symbol": "line-ns", "size": 10, "color": BROKEN, "line": {"color": BROKEN, "width": 1.5}},
        text=[f"trial {trial.number}: {escaped(reason_in_words(trial.reason, run.score))}" for trial in refused],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    return xs


def _hover(
    run: RunRecord, trial: TrialRecord, name: str, values: Mapping[str, float], ci95: float | None = None
) -> str:
    score = f"{label(run.score.name)} {shown_interval(run.score, values[run.score.name], ci95)}"
    what = "<br>".join(escaped(line) for line in architecture_lines(trial.arch))
    other = f"{label(name)} {shown(name, values[name], run.score)}"
    return f"trial {trial.number} · {trial.arch.arch_id}<br>{score}<br>{other}<br>{what}"


def _score_caption(run: RunRecord, members: Sequence[FrontMember], trained: Sequence[FullTraining]) -> str:
    if any(member.trial.repeats for member in members):
        again = f"retrained {run.config.final_fidelity.origin}" if run.trains else "scored again"
        text = f"Grey: brief scores of the search. Blue: the front, {again}"
        text += ", mean and 95 % interval." if any(member.score_ci95 is not None for member in members) else "."
    else:
        text = "Grey: brief scores of the search, one training each. Blue: the best so far; nothing is retrained yet."
    text += f" A lower {label(run.score.name)} is better." if run.score.direction == "minimize" else ""
    if trained:
        text += " Diamonds: students trained by `kdnas train`, one training each."
    if len(run.objectives) > 2 and members:
        text += f" The front is of {len(run.objectives)} objectives; the line joins those best in this pair."
    return text


def _teacher_values(run: RunRecord) -> dict[str, float]:
    values = {objective.name: teacher_value(run, objective.name) for objective in run.objectives}
    return (
        {} if None in values.values() else {name: float(value) for name, value in values.items() if value is not None}
    )


def _reference_row(run: RunRecord) -> Any:
    return minimised([run.reference_point], run.objectives)[0]


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else 0.0


def _padded(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.08 * _spread(values) or 0.02
    return min(values) - margin, max(values) + margin


_PHASES: Mapping[str, tuple[str, str]] = {
    "student": ("student’s steps", FRONT),
    "teacher": ("teacher", TEACHER),
    "data": ("making batches", RECOMMENDED),
    "evaluation": ("evaluation", "#7a55a3"),
    "build": ("building and measuring", BROKEN),
    "proposal": ("proposing", "#c9a227"),
    "other": ("start-up, waiting and all else", FAINT),
}
"""Name in a trial's profile -> (words, colour), in the order in which bars are stacked."""


def seconds_of(trial: TrialRecord) -> dict[str, float]:
    """Return the seconds of one trial by phase, from its proposal to its end; what no phase accounts for is `other`.

    Trials without a profile have only the teacher's share of their training.
    """
    profile = {name: seconds for name, seconds in trial.profile.items() if name in _PHASES}
    known = profile or {"teacher": trial.teacher_seconds, "student": trial.train_seconds - trial.teacher_seconds}
    if trial.started is None or trial.ended is None:
        return known
    whole = (trial.ended - trial.started).total_seconds()
    return {**known, "other": max(0.0, whole - sum(known.values()))}


def seconds_by_phase(run: RunRecord) -> dict[str, float]:
    """Return the seconds of all trials by phase, the largest first; empty before a trial has taken time."""
    sums: dict[str, float] = {}
    for trial in run.trials:
        for name, seconds in seconds_of(trial).items():
            sums[name] = sums.get(name, 0.0) + seconds
    return dict(sorted(((n, s) for n, s in sums.items() if s > 0), key=lambda item: -item[1]))


def remarks(run: RunRecord) -> str:
    """Return, in sentences, how many students a device trained at once and what slowed trials; empty where nothing."""
    slowed = Counter(note for trial in run.trials for note in trial.notes)
    lines = [capitalised(run.packing)] if run.packing else []
    lines += [f"In {counted(trials, 'trial')} {note}" for note, trials in slowed.most_common()]
    return " ".join(f"{line}." for line in lines)


def time_figure(run: RunRecord) -> Figure:
    """Return a stacked bar a trial, from its proposal to its end; the legend has each phase's share of all."""
    sums = seconds_by_phase(run)
    total = sum(sums.values()) or 1.0
    rows = [(trial.number, seconds_of(trial)) for trial in run.trials]
    drawing = go.Figure()
    for name, (words, colour) in _PHASES.items():
        if name in sums:
            drawing.add_bar(
                x=[number for number, _ in rows], y=[seconds.get(name, 0.0) for _, seconds in rows],
                name=f"{words}: {100 * sums[name] / total:.1f} %", marker={"color": colour},
                hovertemplate=f"trial %{{x}}: %{{y:.2f}} s, {words}<extra></extra>",
            )  # fmt: skip
    drawing.update_xaxes(title="Trial")
    drawing.update_yaxes(title="Seconds", rangemode="tozero")
    drawing = styled(drawing)
    drawing.update_layout(barmode="stack", bargap=0.15, legend={"traceorder": "normal"})
    return Figure(
        "time",
        "Where the time of the search went",
        f"{duration(total)} of all trials together, each from proposal to end; those of several workers overlap. "
        f"The first trials pay for {'the teacher’s outputs and for ' if run.teacher else ''}starting the workers. "
        f"{remarks(run)}".rstrip(),
        drawing,
    )
