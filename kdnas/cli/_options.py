"""Options that several verbs share, spelled once; and the question whether code that a run folder names may run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kdnas.core.pick import PICKS
from kdnas.core.words import command_line
from kdnas.errors import ConfigError, Problem
from kdnas.trust import strange_code, trust

StudyPath = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY", help="A folder with a study.yaml, a YAML file, or a run folder.", show_default=False
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Where data sets lie. Default: the environment variable KDNAS_DATA, else ./data.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=1024,
        metavar="N",
        help="CPU threads of a training. Default: those of the run, 1 unless it states more: more may pay for large "
        "samples on a quiet machine, and cost much on a busy one.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting of the study, such as training.epochs=10. May be repeated.",
        show_default=False,
    ),
]
Pick = Annotated[
    str,
    typer.Option("--pick", metavar="P", help=f"Which student: {PICKS}."),
]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option(
        "--leave-out",
        metavar="N",
        help="Close the damaged trial N of the run's record as failed, for good. May be repeated.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Let the code run that this run folder or file names, though no study of yours named it. Remembered.",
    ),
]


def colour() -> bool | None:
    """Return False where the user wants no colours (NO_COLOR, or a dumb terminal), else None: as the stream is."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def allow_code(source: Path, settings: Mapping[str, Any], data_root: Path, trusted: bool) -> None:
    """Return where the code that the YAML file `source` names may run: it names none, or this user's, or trusted code.

    On a terminal the user is asked. Raises ConfigError where it may not, with what would run.
    """
    named = strange_code(source, settings, data_root)
    if not named:
        return
    listed = "; ".join(code.in_words(data_root) for code in named)
    if not trusted and sys.stdin.isatty() and sys.stderr.isatty():
        typer.echo(f"{source} names code that no study of yours on this machine named:", err=True)
        for code in named:
            typer.echo(f"  {code.in_words(data_root)}", err=True)
        trusted = typer.confirm("Let it run? It is asked once", default=False, err=True)
    if not trusted:
        again = command_line("kdnas", *sys.argv[1:], "--trust-code")
        what = f"names code that no study of yours on this machine named, so it does not run: {listed}"
        raise ConfigError([Problem(str(source), what), Problem("", f"where you trust it, once: {again}")])
    trust(source, named, data_root)
    typer.echo(f"trusted from now on: {listed}", err=True)


def allow_code_of_run(run: Path, data_root: Path, trusted: bool) -> None:
    """Return where the code that the run folder `run` names may run. Raises ConfigError, RunFolderError."""
    from kdnas.record.lock import read_code_settings
    from kdnas.record.run_folder import LOCK_FILE

    if not (run / LOCK_FILE).exists():  # then it is no run, which the opener reports
        return
    allow_code(run / LOCK_FILE, read_code_settings(run), data_root, trusted)
