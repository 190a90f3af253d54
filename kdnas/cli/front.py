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
    console.print(front_table(record))
    for title, member, sentence in highlights(record):
        console.print(f"{title}: {member.trial.arch.arch_id}. {sentence}", markup=False)


def front_table(run: RunRecord) -> Table:
    """Return the front as a terminal table, the knee marked, the teacher as its last row."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from kdnas.report.tables import other_quantities, short_archs
    from kdnas.report.wording import label, shown, shown_interval
    from kdnas.study.front import front, knee_of

    members = front(run)
    knee = knee_of(members, run.objectives)
    archs = short_archs([member.trial for member in members])
    names = ["macs", "params", *other_quantities(run)]
    retrained = any(member.trial.repeats for member in members)
    table = Table(box=box.SIMPLE_HEAD, caption="◆ knee  ★ teacher", caption_justify="left")
    table.add_column("student", no_wrap=True)
    table.add_column("accuracy ± 95 %" if retrained else "accuracy (brief, one seed)", justify="right")
    table.add_column("test accuracy", justify="right")
    for name in names:
        table.add_column(label(name), justify="right", no_wrap=True)
    table.add_column("choices in which they differ", overflow="fold")
    for member in members:
        table.add_row(
            f"{'◆' if member is knee else ' '} {member.trial.arch.arch_id}",
            shown_interval("accuracy", member.values.get("accuracy"), member.accuracy_ci95),
            shown_interval("accuracy", member.test_accuracy, member.test_accuracy_ci95),
            *(shown(name, member.values.get(name)) for name in names),
            escape(archs[member.trial.number]),
            style="bold green" if member is knee else None,
        )
    if run.teacher is not None:
        costs = [shown(name, run.teacher.values.get(name)) for name in names]
        accuracies = [shown("accuracy", value) for value in (run.teacher.accuracy, run.teacher.test_accuracy)]
        table.add_row(f"★ {escape(run.teacher.name)}", *accuracies, *costs, "", style="dim")
    return table
