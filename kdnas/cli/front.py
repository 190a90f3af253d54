"""`kdnas front`: the Pareto front of a run as a table."""

from __future__ import annotations

import json

import typer

from kdnas.cli._options import Json, RunFolder


def command(
    run: RunFolder,
    as_json: Json = False,
) -> None:
    """Show the run's Pareto front: the score with its 95 % interval, costs, and the teacher beside it.

    The recommended student is marked, and it is said how it was chosen. Students that `kdnas train` trained follow.

    Students whose score is not distinguishable from another's are marked, and one line says how far an audit found
    the search's scores to be trusted.
    """
    from kdnas.record.storage import load_run

    record = load_run(run)
    if as_json:
        from kdnas.report.audit import audit_document
        from kdnas.report.tables import front_document, full_trainings_document

        document = {**front_document(record), "full_trainings": full_trainings_document(record)}
        typer.echo(json.dumps({**document, "audit": audit_document(record)}, indent=2))
        return
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
