"""Options that several verbs share, spelled once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kdnas.core.pick import PICKS

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
        "images on a quiet machine, and cost much on a busy one.",
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


def colour() -> bool | None:
    """Return False where the user wants no colours (NO_COLOR, or a dumb terminal), else None: as the stream is."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
