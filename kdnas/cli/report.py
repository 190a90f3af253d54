"""`kdnas report`: a run's page, tables and picture."""

from __future__ import annotations

import typer

from kdnas.cli._options import LeaveOut, RunFolder


def command(run: RunFolder, leave_out: LeaveOut = None) -> None:
    """Write report.html, front.csv, trials.csv and front.svg.

    They are made anew from the run's record and written into the run folder. report.html is one file that works
    offline.

    Examples:
      kdnas report runs/digits
    """
    from kdnas.record.lock import read_lock
    from kdnas.record.storage import leave_out_damaged, load_run, run_held
    from kdnas.report.page import write_report

    if leave_out:
        config = read_lock(run).config  # a folder that is no run is refused before anything is made in it
        with run_held(run, config):
            for line in leave_out_damaged(run, leave_out):
                typer.echo(line)
    for path in write_report(load_run(run)):
        typer.echo(path)
