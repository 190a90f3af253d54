"""Where the time of a search went: seconds of every trial by phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import plotly.graph_objects as go

from kdnas.core.words import counted
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.report.style import BROKEN, FAINT, FRONT, RECOMMENDED, TEACHER, Figure, styled
from kdnas.report.wording import duration

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

    Trials without a profile know only the teacher's share of their training.
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
    lines = [run.packing[:1].upper() + run.packing[1:]] if run.packing else []
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
        f"The first trials pay for the teacher’s outputs and for starting the workers. {remarks(run)}".rstrip(),
        drawing,
    )
