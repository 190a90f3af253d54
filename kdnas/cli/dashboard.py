"""`kdnas dashboard`: a run's page, live, on the loopback address."""

from __future__ import annotations

from typing import Annotated

import typer

from kdnas.cli._options import RunFolder
from kdnas.core.words import command_line


def command(
    run: RunFolder,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 8321,
) -> None:
    """Serve the run's report as a live page until Ctrl-C.

    The page is read-only and served on the loopback address alone.

    Examples:
      kdnas dashboard runs/digits
      kdnas dashboard runs/digits --port 0
    """
    from kdnas.record.database import database_of_run
    from kdnas.record.storage import load_run
    from kdnas.report.dashboard import DashboardServer

    database = database_of_run(load_run(run))  # a folder that is no run is refused before anything is served
    with DashboardServer(run, database, port) as server:
        typer.echo(f"{server.url} shows {run} and follows it; Ctrl-C stops it")
        typer.echo(f"the same record in Optuna's own dashboard: {command_line('optuna-dashboard', database.url)}")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command serves the page again", err=True)
            raise typer.Exit(130) from None
