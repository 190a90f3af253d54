"""`kdnas search`: run a study, or continue it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdnas.cli._options import DataRoot, Overrides, StudyPath, TrustCode, allow_code_of_run

if TYPE_CHECKING:
    from kdnas.cli._search_view import View

_TERMINAL_INTERVAL_S, _LOG_INTERVAL_S = 15.0, 60.0
"""How often a dumb terminal, and a log, print the progress where nothing ends meanwhile."""


def command(
    study: StudyPath,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run folder. Default: runs/<study name>.")
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Scores of students (budget.trials).")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Worker processes (executor.workers).")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Keep the trials in this PostgreSQL database, postgresql://user@host/database, which many studies may "
            "share. The password comes from PGPASSWORD or ~/.pgpass. Default: the run folder.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="URL",
            help="Where machines that share no disk have checkpoints, caches and code from: s3://bucket/folder, or "
            "another URL of fsspec's. Credentials come from the environment. Default: they share their folders.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of each training (training.threads).")
    ] = None,
    enqueue: Annotated[
        list[Path] | None,
        typer.Option(
            "--enqueue",
            metavar="ARCH.yaml",
            help="Score this student of yours first, like the others: its choices as in the space file, or an "
            "exported student.json. May be repeated.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, an event each.")] = False,
) -> None:
    """Search for the students of a study.

    Students are proposed, trained briefly and scored; those of the front are retrained, reported and exported. The same
    command continues a stopped search, and does nothing when everything is done. A run folder can be named in place of
    the study: it holds the whole study.

    Examples:
      kdnas search studies/digits
      kdnas search runs/digits --trials 100
      kdnas search my-study --out runs/a --trials 200 --set training.epochs=10
      kdnas search my-study --enqueue mine.yaml --enqueue export/student.json
    """
    settings = list(overrides or [])
    settings += [f"budget.trials={trials}"] if trials is not None else []
    settings += [f"executor.workers={workers}"] if workers is not None else []
    settings += [f"device={device}"] if device is not None else []
    settings += [f"storage={storage}"] if storage is not None else []
    settings += [f"store={store}"] if store is not None else []
    settings += [f"training.threads={threads}"] if threads is not None else []
    try:
        _search(study, out, settings, enqueue or [], data_root, json, trust_code)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues", err=True)
        raise typer.Exit(130) from None


def _search(
    study: Path,
    out: Path | None,
    settings: list[str],
    queue: list[Path],
    root_option: Path | None,
    json: bool,
    trust_code: bool,
) -> None:
    from kdnas.record.started_study import read_study, run_folder

    continued = run_folder(study)
    if continued is not None:
        from kdnas.workshop.opening import data_root

        allow_code_of_run(continued, data_root(root_option), trust_code)
    loaded = read_study(study, settings)
    if continued is None and loaded.config.data is not None and loaded.config.data.unused:  # a run states all there is
        typer.echo(f"note: data: {loaded.config.data.unused}", err=True)
    folder = (out or continued or Path("runs") / loaded.config.name).resolve()
    from kdnas.session import search_study  # here: faults of the study are reported before the slow imports
    from kdnas.workshop.opening import data_root

    with _open_view(json, loaded.config.budget.trials) as view:
        search_study(
            loaded,
            folder,
            data_root=data_root(root_option).resolve(),
            observe=view.observe,
            queue=queue,
            on_end=view.close,
        )


def _open_view(as_json: bool, budget: int | None) -> View:
    """Return the view that fits: JSON lines if asked for, live on a terminal, else plain lines."""
    from kdnas.cli._search_view import JsonView, LiveView, PlainView
    from kdnas.cli._terminal import console, redraws

    if as_json:
        return JsonView()
    terminal = console()
    if redraws(terminal):
        return LiveView(terminal, budget)
    return PlainView(terminal, budget, interval_s=_TERMINAL_INTERVAL_S if terminal.is_terminal else _LOG_INTERVAL_S)
