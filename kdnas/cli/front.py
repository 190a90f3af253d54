"""`kdnas front`: the Pareto front of a run as a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdnas.cli._options import Json, RunFolder
from kdnas.core.objective import parse_constraint
from kdnas.core.pick import PickError
from kdnas.errors import ConfigError, Problem

if TYPE_CHECKING:
    from kdnas.record.records import RunRecord

_MEMBERS = 16


def command(
    run: RunFolder,
    as_json: Json = False,
    solve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BOUND",
            help="Instead: the best students that the run's block library foretells within this bound, such as "
            "'macs<=30%'; nothing is trained. Repeat for more.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the run's Pareto front: the score with its 95 % interval, costs, and the teacher's.

    The recommended student is marked, with the rule that chose it. Students that `kdnas train` trained follow.

    Students whose score is not distinguishable from another's are marked, and one line states how far an audit found
    the search's scores to be trusted.

    With --solve a search by `sampler: blocks` is asked again, for another budget: `kdnas help blocks`.
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
    from kdnas.report.searched import stuck_at_bounds
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
    for remark in filter(None, (*lines, *stuck_at_bounds(record))):
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
    """Show the front that the run's block library foretells within `bounds`. Raises InputError."""
    from kdnas.core.pick import against
    from kdnas.workshop.block_library import saved_library

    library = saved_library(record.folder)
    stated, problems = [], []
    for text in bounds:
        try:
            bound = against(parse_constraint(text), record.standard, record.score)
        except (PickError, ValueError) as error:
            problems.append(Problem(f"--solve {text}", str(error)))
            continue
        if bound.name not in library.costs:
            what = (
                f"{bound.name} is no sum over blocks, so a library does not foretell it: search with it as a constraint"
            )
            problems.append(Problem(f"--solve {text}", what, " or ".join(library.costs)))
        stated.append(bound)
    if problems:
        raise ConfigError(problems)
    limits = tuple(bound for bound in record.limits if bound.name in library.costs)
    lead = stated[0].name
    front = library.front(lead, (*limits, *stated), count=_MEMBERS)
    if not front:
        least = library.solve(limits, least=lead)
        cheapest = "" if least is None else f": the least is {least.costs[lead]:,.0f} {lead}"
        raise ConfigError(Problem("--solve", f"no student is within {' and '.join(map(str, stated))}{cheapest}"))
    active = record.lock.space.active
    choices = [{name: solved.assignment[name] for name in active(solved.assignment)} for solved in front]
    if as_json:
        members: list[dict[str, Any]] = [
            {"choices": chosen, "block_loss": solved.loss, **solved.costs}
            for chosen, solved in zip(choices, front, strict=True)
        ]
        typer.echo(json.dumps(members, indent=2))
        return
    typer.echo(f"{'foretold loss':>14}  " + "  ".join(f"{name:>14}" for name in library.costs) + "  student")
    for chosen, solved in zip(choices, front, strict=True):
        costs = "  ".join(f"{solved.costs[name]:14,.0f}" for name in library.costs)
        spelled = ", ".join(f"{name} {value}" for name, value in chosen.items())
        typer.echo(f"{solved.loss:14.4f}  {costs}  {spelled}")
    typer.echo("Foretold, not trained. To score them: --json > mine.json, then kdnas search RUN --enqueue mine.json")
