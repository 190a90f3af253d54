"""The Pareto front as a terminal table, for `kdnas front` and a running search."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from kdnas.plan.training_folder import FullTraining
from kdnas.record.front import front, indistinguishable, recommended
from kdnas.record.records import FrontMember, RunRecord
from kdnas.report.student_tables import full_trainings_rows
from kdnas.report.tables import enqueued_numbers, other_quantities, short_archs
from kdnas.report.wording import label, shown, shown_interval

_WIDE = 180
"""Columns of a terminal from which a student's choices fit beside its numbers."""
_NARROW = 100


def front_table(run: RunRecord, width: int, rows: int | None = None) -> Table:
    """Return the front as a terminal table, the recommended student marked, the teacher as its last row.

    A wide one shows the choices, too. Of a front longer than `rows`, as many members spread over it, the recommended
    one among them.
    """
    members = front(run)
    chosen = recommended(run)
    marked = None if chosen is None else chosen.member.trial.number
    alike = indistinguishable(members)
    archs = short_archs([member.trial for member in members])
    others = other_quantities(run)
    known = {name for member in members for name in member.values}
    names = [name for name in ("macs", "params", *others) if name in known]
    retrained = any(member.trial.repeats for member in members)
    meaning = "means of the retrainings ± 95 %" if retrained else "brief scores, one seed"
    how = f"◆ {chosen.words}  " if chosen is not None else ""
    star = "★ teacher  " if run.teacher is not None else ""
    like = "≈ accuracy like another’s; " if any(alike.values()) else ""
    caption = f"{how}{star}{like}accuracies are {meaning}"
    queued = enqueued_numbers(run)
    caption = f"+ enqueued  {caption}" if any(member.trial.number in queued for member in members) else caption
    table = Table(box=None, caption=caption, caption_justify="left", pad_edge=False, header_style="bold")
    table.add_column("student", no_wrap=True)
    for heading in ("accuracy", *(["on test"] if retrained else []), *map(_heading, names)):
        table.add_column(heading, justify="right", no_wrap=True)
    if width >= _WIDE:
        table.add_column("choices in which they differ", overflow="fold")  # the numbers stay whole
    for member in _spread(members, rows, marked):
        test = [_interval(member.test_score, member.test_score_ci95, width)] if retrained else []
        table.add_row(
            f"{'◆' if member.trial.number == marked else ' '} {member.trial.arch.arch_id}"
            f"{' ≈' if alike[member.trial.number] else ''}{' +' if member.trial.number in queued else ''}",
            _interval(member.values.get("accuracy"), member.score_ci95, width),
            *test,
            *(shown(name, member.values.get(name)) for name in names),
            *([escape(archs[member.trial.number])] if width >= _WIDE else []),
            style="bold green" if member.trial.number == marked else None,
        )
    if run.teacher is not None:
        costs = [shown(name, run.teacher.values.get(name)) for name in names]
        scores = (run.teacher.score, run.teacher.test_score) if retrained else (run.teacher.score,)
        accuracies = [shown("accuracy", score) for score in scores]
        table.add_row("★ teacher", *accuracies, *costs, style="dim")
    return table


def full_trainings_table(run: RunRecord, trainings: Sequence[FullTraining]) -> Table:
    """Return the students that `kdnas train` trained in this run as a terminal table."""
    headings, rows = full_trainings_rows(run, trainings)
    caption = "full trainings: one each; the test split was used once"
    table = Table(box=None, caption=caption, caption_justify="left", pad_edge=False, header_style="bold")
    shown_columns = headings[:-1]  # the folder is named after the student
    for place, heading in enumerate(shown_columns):
        table.add_column(heading, justify="right" if place else "left", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(escape(cell.text) for cell in row[: len(shown_columns)]))
    return table


def _heading(name: str) -> str:
    return "params" if name == "params" else label(name)


def _interval(accuracy: float | None, ci95: float | None, width: int) -> str:
    """Return an accuracy with its interval; the ends of one that is cut off go below it on a narrow terminal."""
    text = shown_interval("accuracy", accuracy, ci95)
    return text.replace(" [", "\n[") if width < _NARROW else text


def _spread(members: Sequence[FrontMember], rows: int | None, marked: int | None) -> list[FrontMember]:
    if rows is None or len(members) <= rows:
        return list(members)
    last = len(members) - 1
    kept = {round(index * last / (rows - 1)) for index in range(rows)}
    return [member for index, member in enumerate(members) if index in kept or member.trial.number == marked]
