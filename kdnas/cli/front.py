"""`kdnas front`: the Pareto front of a run as a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from kdnas.cli._options import Json, RunFolder

if TYPE_CHECKING:
    from kdnas.record.records import RunRecord


def command(
    run: RunFolder,
    as_json: Json = False,
    solve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BOUND",
            help="Instead: the best students that the run's block library predicts within this bound, such as "
            "'macs<=30%'; nothing is trained. Repeat for more.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the run's Pareto front.

    Each student is listed with its score, the score's 95 % interval and its costs; the teacher is the last row. The
    recommended student is marked, with the rule that chose it, and so are students whose scores do not differ
    significantly. Students that `kdnas train` trained follow. One line states how far the search's scores can be
    trusted, by `kdnas audit`.

    With --solve the block library of a search by `sampler: blocks` is solved for another budget: `kdnas help blocks`.

    Examples:
      kdnas front runs/digits
      kdnas front runs/digits --json
    """
    from kdnas.record.storage import load_run

    record = load_run(run)
    if solve:
        _solve(record, solve, as_json)
        return
    if as_json:
        from kdnas.report.audit import audit_document
        from kdnas.report.tables import front_document, full_trainings_document

        document = {**front_document(record), "full_trainings": full_trainings_document(record)}
        typer.echo(json.dumps({**document, "audit": audit_document(record)}, indent=2))
        return
    _show(record)


def _show(record: RunRecord) -> None:
    """Print the front and the remarks on it."""
    from kdnas.cli._terminal import console as terminal
    from kdnas.cli._terminal import printed, printed_front
    from kdnas.plan.training_folder import full_trainings
    from kdnas.record.front import front
    from kdnas.report.architecture import architecture_in_words
    from kdnas.report.audit import trust_line
    from kdnas.report.searched import stuck_at_bounds, tuned_in_words
    from kdnas.report.summary import (
        bits_in_words,
        control_in_words,
        distinguishing,
        goals,
        highlights,
        near_chance,
        progress,
        still_rising,
    )
    from kdnas.report.tables import full_trainings_table

    console = terminal()
    console.print(progress(record), markup=False)
    for other in record.others:
        console.print(f"Trial {other.number}: {other.reason}.", markup=False)
    if not front(record):
        console.print("There is no front yet: no student was scored that meets every constraint.", markup=False)
        return
    console.print(printed_front(record, console.width))
    lines = [goals(record), near_chance(record), distinguishing(record), bits_in_words(record)]
    lines += [control_in_words(record), still_rising(record)]
    for remark in filter(None, (*lines, *tuned_in_words(record), *stuck_at_bounds(record))):
        console.print(remark, markup=False)
    for title, member, sentence in highlights(record):
        console.print(f"{title}: {member.trial.arch.arch_id}. {sentence}", markup=False)
        console.print(f"  {architecture_in_words(member.trial.arch)}", markup=False)
    trainings, troubles = full_trainings(record.folder)
    if trainings:
        caption = "full trainings: one each; the test split was used once"  # a folder is named after its student
        console.print(printed(full_trainings_table(record, trainings), caption=caption, without=["folder"]))
    for trouble in troubles:
        console.print(trouble, markup=False)
    console.print(trust_line(record), markup=False)


def _solve(record: RunRecord, bounds: list[str], as_json: bool) -> None:
    """Show the front that the run's block library predicts within `bounds`. Raises InputError."""
    from kdnas.workshop.block_library import solve

    front = solve(record, bounds)
    if as_json:
        members = [{"choices": one.assignment, "block_loss": one.loss, **one.costs} for one in front]
        typer.echo(json.dumps(members, indent=2))
        return
    typer.echo(f"{'predicted loss':>14}  " + "  ".join(f"{name:>14}" for name in front[0].costs) + "  student")
    for one in front:
        costs = "  ".join(f"{cost:14,.0f}" for cost in one.costs.values())
        spelled = ", ".join(f"{name} {value}" for name, value in one.assignment.items())
        typer.echo(f"{one.loss:14.4f}  {costs}  {spelled}")
    typer.echo("Predicted, not trained. To score them: --json > mine.json, then kdnas search RUN --enqueue mine.json")
