"""The question whether code that a run folder or a train.yaml names may run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kdnas.core.words import command_line
from kdnas.errors import ConfigError, Problem
from kdnas.trust import strange_code, trust

TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Let the code run that this run folder or file names, though no study of yours named it. Remembered.",
    ),
]


def allow_code(source: Path, settings: Mapping[str, Any], data_root: Path, trusted: bool) -> None:
    """Return where the code that the YAML file `source` names may run: it names none, or this user's, or trusted code.

    On a terminal the user is asked. Raises ConfigError where it may not, with what would run.
    """
    named = strange_code(source, settings, data_root)
    if not named:
        return
    told = "; ".join(code.told(data_root) for code in named)
    if not trusted and sys.stdin.isatty() and sys.stderr.isatty():
        typer.echo(f"{source} names code that no study of yours on this machine named:", err=True)
        for code in named:
            typer.echo(f"  {code.told(data_root)}", err=True)
        trusted = typer.confirm("Let it run? It is asked once", default=False, err=True)
    if not trusted:
        again = command_line("kdnas", *sys.argv[1:], "--trust-code")
        what = f"names code that no study of yours on this machine named, so it does not run: {told}"
        raise ConfigError([Problem(str(source), what), Problem("", f"where you trust it, once: {again}")])
    trust(source, named, data_root)
    typer.echo(f"trusted from now on: {told}", err=True)


def allow_code_of_run(run: Path, data_root: Path, trusted: bool) -> None:
    """Return where the code that the run folder `run` names may run. Raises ConfigError, RunFolderError."""
    from kdnas.record.run_folder import LOCK_FILE, read_lock

    if not (run / LOCK_FILE).exists():  # then it is no run, which is told by who opens it
        return
    config = read_lock(run)["config"]
    allow_code(run / LOCK_FILE, config if isinstance(config, dict) else {}, data_root, trusted)
