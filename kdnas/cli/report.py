"""`kdnas report`: a run's page, tables and picture."""

from __future__ import annotations

import typer

from kdnas.cli._options import RunFolder


def command(run: RunFolder) -> None:
    """Write report.html (one file, works offline), front.csv, trials.csv and front.svg into the run folder."""
    from kdnas.report.files import write_report
    from kdnas.study.storage import load_run

    for path in write_report(load_run(run)):
        typer.echo(path)
