"""`kdnas front`: the Pareto front of a run as a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from kdnas.cli._options import Json, RunFolder

if TYPE_CHECKING:
    from rich.table import Table

    from kdnas.study.records import RunRecord


def command(
    run: RunFolder,
    as_json: Json = False,
) -> None:
    """Show the run's Pareto front: accuracy with its 95 % interval, costs, the knee, and the teacher beside it."""
    from kdnas.study.storage import load_run

    record = load_run(run)
    if as_json:
        from kdnas.report.tables import front_document

        typer.echo(json.dumps(front_document(record), indent=2))
        return
    from rich.console import Console

    from kdnas.report.summary import highlights, progress
    from kdnas.study.front import front

    console = Console(highlight=False)
    console.print(progress(record), markup=False)
    if not front(record):
        console.print("There is no front yet: no scored student meets every constraint.", markup=False)
        return
    console.print(front_table(record, console.width))
    for title, member, sentence in highlights(record):
        console.print(f"{title}: {member.trial.arch.arch_id}. {sentence}", markup=False)


_WIDE = 130
"""Columns of a terminal from which a student's choices fit beside its numbers."""


def front_table(run: RunRecord, width: int) -> Table:
    """Return the front as a terminal table, the knee marked, the teacher as its last row; on a wide one the choices."""
    from rich.markup import escape
    from rich.table import Table

    from kdnas.report.tables import other_quantities, short_archs
    from kdnas.report.wording import label, shown, shown_interval
    from kdnas.study.front import front, knee_of

    members = front(run)
    knee = knee_of(members, run.objectives)
    archs = short_archs([member.trial for member in members])
    others = other_quantities(run)
    names = ["macs", "params", *others]
    retrained = any(member.trial.repeats for member in members)
    meaning = "means of the retrainings ± 95 %" if retrained else "brief scores, one seed"
    caption = f"◆ knee  ★ teacher; accuracies are {meaning}"
    table = Table(box=None, caption=caption, caption_justify="left", pad_edge=False, header_style="bold")
    table.add_column("student", no_wrap=True)
    for heading in ("accuracy", *(["on test"] if retrained else []), "MACs", "params", *map(label, others)):
        table.add_column(heading, justify="right", no_wrap=True)
    if width >= _WIDE:
        table.add_column("choices in which they differ", no_wrap=True, overflow="ellipsis")
    for member in members:
        test = [shown_interval("accuracy", member.test_accuracy, member.test_accuracy_ci95)] if retrained else []
        table.add_row(
            f"{'◆' if member is knee else ' '} {member.trial.arch.arch_id}",
            shown_interval("accuracy", member.values.get("accuracy"), member.accuracy_ci95),
            *test,
            *(shown(name, member.values.get(name)) for name in names),
            *([escape(archs[member.trial.number])] if width >= _WIDE else []),
            style="bold green" if member is knee else None,
        )
    if run.teacher is not None:
        costs = [shown(name, run.teacher.values.get(name)) for name in names]
        scores = (run.teacher.accuracy, run.teacher.test_accuracy) if retrained else (run.teacher.accuracy,)
        accuracies = [shown("accuracy", score) for score in scores]
        table.add_row("★ teacher", *accuracies, *costs, style="dim")
    return table
