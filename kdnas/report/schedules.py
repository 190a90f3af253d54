"""A run's training schedules: their steps as tables, and what a supernet unlocked when and why as a figure."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdnas.core.arch import Scalar
from kdnas.core.schedule import Schedule
from kdnas.core.words import counted
from kdnas.errors import InputError
from kdnas.record.records import RunRecord
from kdnas.report.html_table import Column, plain_rows, table_html
from kdnas.report.schedule_figure import (
    begins,
    how_it_ended,
    subnets_in_words,
    unlocking_figure,
    what_was_measured,
    why_it_began,
)
from kdnas.report.style import Figure
from kdnas.report.wording import duration, scaled, shown
from kdnas.training.schedule_file import SCHEDULE_FILE, read_schedule

if TYPE_CHECKING:
    from kdnas.plan.schedules import Step, TrainingSchedule


@dataclass(frozen=True)
class FoundSchedule:
    """A schedule file of a run. `plan` is None where it is a supernet's alone; `problem` says why it cannot be read."""

    path: Path
    plan: TrainingSchedule | None = None
    recorded: tuple[tuple[str, Schedule, Mapping[str, Sequence[Scalar]]], ...] = ()
    """Of each recorded supernet: the step's name, its stages, and the values it was to unlock, by choice."""
    problem: str = ""


def found_schedules(run: RunRecord) -> tuple[FoundSchedule, ...]:
    """Return the schedules in the run's folder: the one to follow, the supernet's own, and those of trainings."""
    planned = [run.folder / SCHEDULE_FILE, *sorted(run.folder.glob(f"training/*/{SCHEDULE_FILE}"))]
    return tuple(itertools.chain(_supernets(run.folder / "supernet" / SCHEDULE_FILE), _plans(planned)))


def schedule_figures(schedules: Sequence[FoundSchedule]) -> list[list[Figure]]:
    """Return for each schedule the figures of its recorded supernets."""
    figures: list[list[Figure]] = []
    numbers = itertools.count(1)
    for found in schedules:
        accuracy = None if found.plan is None else found.plan.teacher.accuracy
        figures.append(
            [
                unlocking_figure(recorded, ladders, name=f"schedule-{next(numbers)}", teacher=accuracy)
                for _, recorded, ladders in found.recorded
                if recorded.stages
            ]
        )
    return figures


def schedules_html(run: RunRecord, schedules: Sequence[FoundSchedule], drawings: Sequence[str]) -> str:
    """Return the report's section on schedules, empty without any; `drawings` are each one's figures as HTML."""
    if not schedules:
        return ""
    parts = ["<section class=schedules><h2>Training schedules</h2>"]
    for found, drawing in zip(schedules, drawings, strict=True):
        where = found.path.relative_to(run.folder)
        if found.problem:
            parts.append(f"<p class='notice'>{_text(where)} cannot be shown: {_text(found.problem)}</p>")
            continue
        if found.plan is not None:
            parts.append(f"<h3>{_text(_title(found.plan, where))}</h3>{_plan_html(found.plan)}")
        else:
            parts.append(f"<h3>The run’s supernet: {_text(where)}</h3>")
        parts.append(f'<div class="figures">{drawing}</div>' if drawing else "")
        for name, recorded, _ in found.recorded:
            parts.append(_table(*stage_table(recorded), f"Stages of {name}", text=(1, 3, 6), long=(2, 8, 9, 10)))
    return "".join(parts) + "</section>"


def stage_table(recorded: Schedule) -> tuple[list[str], list[list[str]]]:
    """Return (headings, rows) of a supernet's stages: settings, what was allowed, and why each began and ended."""
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
                "; ".join(what_was_measured(stage)) or "–",
                how_it_ended(finished),
            ]
        )
        before = stage.allowed
    return [*headings, "why it began", "measured before it", "how it ended"], rows


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


def _supernets(path: Path) -> Iterator[FoundSchedule]:
    if path.is_file():
        try:
            recorded = read_schedule(path)
        except InputError as error:
            yield FoundSchedule(path, problem=str(error))
            return
        last: Mapping[str, Sequence[Scalar]] = recorded.stages[-1].stage.allowed if recorded.stages else {}
        yield FoundSchedule(path, recorded=(("the supernet", recorded, last),))


def _plans(paths: Sequence[Path]) -> Iterator[FoundSchedule]:
    for path in paths:
        if not path.is_file():
            continue
        from kdnas.plan.schedules import load_schedule  # torch comes with it: not before there is a schedule

        try:
            plan, _ = load_schedule(path)
            recorded = tuple(
                (step.name, schedule, step.space.choices)
                for step in plan.steps
                if step.kind == "supernet" and (schedule := step.schedule) is not None
            )
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            yield FoundSchedule(path, problem=str(error).partition("\n")[0])
            continue
        yield FoundSchedule(path, plan, recorded)


def _title(plan: TrainingSchedule, where: Path) -> str:
    what = "Training" if where.parent.name else "The schedule to follow"
    return f"{what} of student {plan.student.arch_id}, route {plan.route}: {where}"


def _plan_html(plan: TrainingSchedule) -> str:
    budget = plan.budget
    lead = (
        f"Chosen because: {plan.why}. Budget: the work of {counted(budget.epochs, 'epoch')} of the student on "
        f"{budget.images:,} images, {scaled(budget.macs).strip()} multiply-accumulates; teachers’ forward passes are "
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
            shown("accuracy", item.accuracy),
            duration(item.train_seconds) if item.accuracy is not None else "–",
            item.note or "–",
        ]
        for item in plan.measured
    ]
    table = _table(headings, rows, "Steps", text=range(5))
    if measured:
        table += _table(
            ["route", "epochs", "validation accuracy", "time", "note"], measured, "Measured routes", long=(4,)
        )
    return f"<p class=lead>{_text(lead)}</p>{table}"


def _step_cells(step: Step) -> list[str]:
    if step.kind == "distil":
        return [step.teacher, step.init, counted(step.epochs, "epoch"), f"× {step.learning_rate:g}"]
    return [step.teacher, step.init, f"policy {step.settings.shrinking.policy}", "by stage"]


def _table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    name: str,
    *,
    text: Sequence[int] = (0,),
    long: Sequence[int] = (),
) -> str:
    """Return a table of texts; the columns of `text` and `long` are aligned left, and wrap in the latter."""
    columns = [Column(head, text=k in (*text, *long), long=k in long) for k, head in enumerate(headings)]
    return table_html(columns, plain_rows(rows), name)


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
