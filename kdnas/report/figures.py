"""The figures of a report. Data is computed by `kdnas.record.front` and the tables first, and only drawn here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from kdnas.core import hypervolume as volumes
from kdnas.core.interval import share_interval
from kdnas.core.objective import Quantity, breaches, minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.words import counted
from kdnas.plan.training_folder import full_trainings
from kdnas.record.front import (
    candidates,
    comparable,
    front,
    hypervolume_over_time,
    measured_values,
    recommended,
)
from kdnas.record.records import FrontMember, RunRecord, TrialRecord
from kdnas.report.architecture import architecture_lines
from kdnas.report.importance import Importance
from kdnas.report.style import (
    BROKEN,
    FAINT,
    FRONT,
    FULL,
    RECOMMENDED,
    TEACHER,
    Figure,
    escaped,
    is_log,
    round_ticks,
    styled,
    teacher_value,
)
from kdnas.report.tables import other_quantities
from kdnas.report.wording import axis_title, bound_in_words, label, reason_in_words, scaled, shown, shown_interval

_LOWER = "scored at a lower rung"


def cost_names(run: RunRecord) -> list[str]:
    """Return the quantities accuracy is drawn against: MACs, latency, then the rest that any student has."""
    known = {name for trial in run.trials for name in measured_values(trial)} - {"accuracy"}
    order = ["macs", "latency_ms", *(o.name for o in run.objectives), "params", *other_quantities(run)]
    return [name for name in dict.fromkeys(order) if name in known]


def staircase(members: Sequence[FrontMember], name: str, direction: str) -> list[FrontMember]:
    """Return the members that stand on the front of accuracy against `name` alone, cheapest first."""
    axes = (Quantity(name, "", direction, "cheap"), Quantity("accuracy", "", "maximize", "trained"))  # type: ignore[arg-type]
    having = [member for member in members if name in member.values and "accuracy" in member.values]
    values = minimised([member.values for member in having], axes)
    kept = [(row[0], member) for row, member, on in zip(values, having, non_dominated(values), strict=True) if on]
    return [member for _, member in sorted(kept, key=lambda pair: float(pair[0]))]


def accuracy_figure(run: RunRecord, name: str) -> Figure:
    """Return accuracy against the quantity `name`: every student, the front, the recommended one and the teacher."""
    drawing = go.Figure()
    xs, ys = _add_scored(drawing, run, name)
    members = front(run)
    if members:
        _add_front(drawing, run, members, name)
        xs += [member.values[name] for member in members if name in member.values]
        ys += [end for m in members for end in share_interval(m.values["accuracy"], m.score_ci95)]
    for total, fully in zip((xs, ys), _add_full_trainings(drawing, run, name), strict=True):
        total += fully
    if run.teacher is not None and name in run.teacher.values:
        xs.append(run.teacher.values[name])
        ys.append(run.teacher.score)
        drawing.add_scatter(
            x=[run.teacher.values[name]], y=[run.teacher.score], mode="markers", name="teacher",
            marker={"symbol": "star", "size": 17, "color": TEACHER, "line": {"color": "white", "width": 1}},
            text=[f"teacher {escaped(run.teacher.name)}<br>accuracy {shown('accuracy', run.teacher.score)}<br>"
                  f"{label(name)} {shown(name, run.teacher.values[name])}"],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    elif run.teacher is not None:
        drawing.add_hline(
            run.teacher.score, line={"color": TEACHER, "dash": "dash", "width": 1.5}, annotation_text="★ teacher",
            annotation_font_color=TEACHER, annotation_position="bottom left",
        )  # fmt: skip
        ys.append(run.teacher.score)
    floor = _padded(ys)[0] if ys else 0.0
    xs += _add_infeasible(drawing, run, name, floor)
    for bound in run.constraints:
        if bound.name == name:
            drawing.add_vline(bound.bound, line={"color": BROKEN, "dash": "dot", "width": 1.5})
            xs.append(bound.bound)
    for goal in run.goals:
        drawing.add_hline(goal.bound, line={"color": BROKEN, "dash": "dot", "width": 1.5})
        ys.append(goal.bound)
    log = is_log(xs)
    drawing.update_xaxes(title=axis_title(name) + (", log scale" if log else ""), type="log" if log else "linear")
    if log:
        marks = round_ticks(min(xs) / 2, max(xs) * 2, log=True)
        drawing.update_xaxes(tickvals=marks, ticktext=[scaled(value).strip() for value in marks])
    drawing.update_yaxes(title="Validation accuracy", tickformat=".0%" if _spread(ys) > 0.05 else ".1%")
    if ys:
        drawing.update_yaxes(range=list(_padded(ys)))
    bounds = " and ".join(bound_in_words(bound) for bound in run.constraints if bound.name == name)
    caption = _accuracy_caption(run, members) + (f" The dotted line is the constraint: {bounds}." if bounds else "")
    return Figure(f"accuracy-{name}", f"Accuracy against {label(name)}", caption, styled(drawing))


def hypervolume_figure(run: RunRecord, over: str) -> Figure:
    """Return how the hypervolume grew, over "trials" or over "time", with what the teacher alone would give.

    Scores of different fidelities do not compare, so each fidelity has a line of its own, and every line a step for
    each score of the search: one that is not its own leaves it as it was.
    """
    drawing = go.Figure()
    complete = [trial for trial in run.trials if trial.state == "complete"]
    fidelities = sorted({trial.fidelity for trial in complete}, key=lambda fidelity: fidelity.amount)
    reference = ", ".join(f"{label(name)} {shown(name, value)}" for name, value in run.reference_point.items())
    unit, xs = "s", [0.0]
    for fidelity in fidelities:
        counted = [trial for trial in complete if trial.fidelity == fidelity]
        curve = hypervolume_over_time(run, counted, steps=complete)
        if not curve:
            continue
        longest = curve[-1][1]
        unit, scale = ("h", 3600.0) if longest > 7200 else ("min", 60.0) if longest > 180 else ("s", 1.0)
        xs = [*map(float, range(1, len(curve) + 1))] if over == "trials" else [s / scale for _, s, _ in curve]
        highest, own = fidelity == fidelities[-1], {trial.number for trial in counted}
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
        f"Volume of objective space that the students found so far dominate, below the reference point ({reference}). "
        "Made of the search’s own scores; a flat end says that more trials of this kind found nothing better."
    )
    if len(fidelities) > 1:
        caption += (
            f" Each line counts the scores of one rung alone, marked by dots; the blue one those "
            f"{fidelities[-1].reached}, of which the front was drawn."
        )
    caption += "" if run.teacher is None else " The teacher’s line is zero where it lies beyond the reference point."
    return Figure(f"hypervolume-{over}", f"Hypervolume over {over}", caption, styled(drawing))


def importance_figure(run: RunRecord, importance: Importance) -> Figure:
    """Return one bar a choice: how much of the accuracy's variance it explains."""
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
    teacher = "" if run.teacher is None else f" The teacher ({shown('accuracy', run.teacher.score)}) takes no part."
    return Figure("importance", "Importance of each choice for accuracy", importance.explanation + teacher, drawing)


def _add_scored(drawing: go.Figure, run: RunRecord, name: str) -> tuple[list[float], list[float]]:
    groups: dict[str, list[TrialRecord]] = {_LOWER: [], "scored by the search": [], "breaks a constraint": []}
    full = {trial.number for trial in comparable(run)}
    for trial in run.trials:
        values = measured_values(trial)
        if (
            trial.state in ("complete", "infeasible")
            and name in values
            and math.isfinite(values.get("accuracy", math.nan))
        ):
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
            x=[row[name] for row in rows], y=[row["accuracy"] for row in rows], mode="markers", name=title,
            marker={"color": BROKEN if broken else FAINT, "size": 8, "opacity": 0.7,
                    "symbol": "x" if broken else "circle-open" if title == _LOWER else "circle"},
            text=[_hover(trial, name, row) for trial, row in zip(trials, rows, strict=True)],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        xs += [row[name] for row in rows]
        ys += [row["accuracy"] for row in rows]
    return xs, ys


def _add_front(drawing: go.Figure, run: RunRecord, members: Sequence[FrontMember], name: str) -> None:
    on_front = {member.trial.number for member in members}
    beaten = [m for m in candidates(run) if m.trial.repeats and m.trial.number not in on_front and name in m.values]
    if beaten:
        _add_members(drawing, beaten, name, "retrained, dominated", FAINT, hollow=True)
    quantity = run.quantities.get(name)
    steps = staircase(members, name, quantity.direction if quantity else "minimize")
    drawing.add_scatter(
        x=[member.values[name] for member in steps], y=[member.values["accuracy"] for member in steps], mode="lines",
        line={"color": FRONT, "width": 2, "shape": "hv"}, showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    having = [member for member in members if name in member.values]
    retrained = any(member.trial.repeats for member in members)
    _add_members(drawing, having, name, "front, retrained (95 %)" if retrained else "front so far", FRONT)
    chosen = recommended(run)
    if chosen is not None and name in (values := chosen.member.values):
        drawing.add_scatter(
            x=[values[name]], y=[values["accuracy"]], mode="markers", name="recommended", hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 18, "color": RECOMMENDED, "line": {"width": 2.5}},
        )  # fmt: skip


def _add_members(
    drawing: go.Figure, members: Sequence[FrontMember], name: str, title: str, colour: str, hollow: bool = False
) -> None:
    drawing.add_scatter(
        x=[member.values[name] for member in members], y=[member.values["accuracy"] for member in members],
        mode="markers", name=title,
        marker={"color": colour, "size": 9, "symbol": "circle-open" if hollow else "circle"},
        error_y=_interval_bars(members),
        text=[_hover(member.trial, name, member.values, member.score_ci95) for member in members],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _interval_bars(members: Sequence[FrontMember]) -> dict[str, Any]:
    """Return the members' intervals as plotly takes them; none leaves 0 to 100 %."""
    halves = [(member.values["accuracy"], member.score_ci95 or 0.0) for member in members]
    up, down = [min(half, 1 - mean) for mean, half in halves], [min(half, mean) for mean, half in halves]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.3, "width": 4}


def _add_full_trainings(drawing: go.Figure, run: RunRecord, name: str) -> tuple[list[float], list[float]]:
    """Draw what `kdnas train` made of students of this run; return where they stand."""
    costs = {trial.arch.arch_id: measured_values(trial) for trial in run.trials if trial.state == "complete"}
    found = [t for t in full_trainings(run.folder)[0] if name in costs.get(t.arch_id, {})]
    if not found:
        return [], []
    xs, ys = [costs[training.arch_id][name] for training in found], [training.score for training in found]
    drawing.add_scatter(
        x=xs, y=ys, mode="markers", name="fully trained", marker={"symbol": "diamond", "size": 11, "color": FULL},
        text=[f"{training.arch_id}, trained for {counted(training.epochs, 'epoch')}<br>accuracy "
              f"{shown('accuracy', training.score)}, test {shown('accuracy', training.test_score)}"
              for training in found],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    return xs, ys


def _add_infeasible(drawing: go.Figure, run: RunRecord, name: str, floor: float) -> list[float]:
    """Draw students refused before training as ticks on the lower edge; return where they stand."""
    refused = [
        trial for trial in run.trials if trial.state == "infeasible" and "accuracy" not in measured_values(trial)
    ]
    refused = [trial for trial in refused if name in measured_values(trial)]
    if not refused:
        return []
    xs = [measured_values(trial)[name] for trial in refused]
    drawing.add_scatter(
        x=xs, y=[floor] * len(xs), mode="markers", name="refused untrained", cliponaxis=False,
        marker={"symbol": "line-ns", "size": 10, "color": BROKEN, "line": {"color": BROKEN, "width": 1.5}},
        text=[f"trial {trial.number}: {escaped(reason_in_words(trial.reason))}" for trial in refused],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    return xs


def _hover(trial: TrialRecord, name: str, values: Mapping[str, float], ci95: float | None = None) -> str:
    accuracy = shown_interval("accuracy", values["accuracy"], ci95)
    what = "<br>".join(escaped(line) for line in architecture_lines(trial.arch))
    return (
        f"trial {trial.number} · {trial.arch.arch_id}<br>accuracy {accuracy}"
        f"<br>{label(name)} {shown(name, values[name])}<br>{what}"
    )


def _accuracy_caption(run: RunRecord, members: Sequence[FrontMember]) -> str:
    if any(member.trial.repeats for member in members):
        origin = run.config.final_fidelity.origin
        text = f"Grey: brief scores of the search. Blue: the front, retrained {origin}, mean and 95 % interval."
    else:
        text = "Grey: brief scores of the search, one training each. Blue: the best so far; nothing is retrained yet."
    if full_trainings(run.folder)[0]:
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
