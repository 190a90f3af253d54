"""`kdnas train`: the full training of one student, with progress; interrupted, the same command continues it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdnas.cli._options import DataRoot
from kdnas.report.wording import duration, shown

if TYPE_CHECKING:
    from kdnas.study.full_training import EpochReport, FullTraining
    from kdnas.study.train_file import TrainFile


def command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder, or an exported train.yaml.", show_default=False),
    ],
    pick: Annotated[
        str | None,
        typer.Option(
            "--pick",
            metavar="P",
            help="Which student of a run folder: knee (default), best, an arch_id, or a bound such as 'macs<=10e6'.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs", min=1, metavar="N", help="Default: those of the file or of the study's final trainings."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Default: RUN/training/<arch_id>, or a folder `training-<arch_id>` beside the train.yaml.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="F",
            help="Write the trained student in this format; may be repeated. Default: all but onnx.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="auto|cpu|cuda", help="Default: the study's.", show_default=False)
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Train one student fully, by the recipe that the search used or that a train.yaml states.

    Stopped at any moment, the same command continues after the last whole epoch. The test split is used once, at
    the end.

      kdnas train runs/digits --pick best --epochs 100
      kdnas train student/train.yaml
    """
    from kdnas.study import opening
    from kdnas.study.full_training import DEFAULT_FORMATS, train_fully

    root = opening.data_root(data_root)
    if device is not None:
        opening.resolve_device(device)
    file, default_out = _training_asked_for(run, pick, epochs, root)
    folder = out or default_out
    with _progress(file.training.epochs) as on_epoch:
        try:
            result = train_fully(
                file,
                folder,
                data_root=root,
                device=device,
                formats=formats or DEFAULT_FORMATS,
                on_epoch=on_epoch,
                say=typer.echo,
            )
        except KeyboardInterrupt:
            typer.echo(f"interrupted; the same command continues in {folder}", err=True)
            raise
    _tell(result)


def _training_asked_for(run: Path, pick: str | None, epochs: int | None, data_root: Path) -> tuple[TrainFile, Path]:
    """Return the training and its default folder. Raises ConfigError, RunFolderError or DataError."""
    from kdnas.errors import ConfigError, Problem
    from kdnas.study import opening
    from kdnas.study.front import pick as pick_member
    from kdnas.study.storage import load_run
    from kdnas.study.train_file import load_train_file, train_file_for, with_epochs

    if run.is_dir():
        record = load_run(run)
        member = pick_member(record, pick or "knee")
        data = opening.open_data(record.config.sources()[0], data_root, opening.cache_dir())
        file = train_file_for(record, member.trial, data)
        default_out = run / "training" / file.arch_id
    else:
        if pick is not None:
            raise ConfigError(
                Problem("--pick", f"{run} is not a run folder: a train.yaml names its one student itself")
            )
        file = load_train_file(run)
        default_out = run.parent / f"training-{file.arch_id}"
    return (file if epochs is None else with_epochs(file, epochs)), default_out


def _tell(result: FullTraining) -> None:
    if result.already_done:
        typer.echo(f"already done: {result.folder} holds this student, trained for {result.epochs} epochs")
    accuracies = (
        f"validation accuracy {shown('accuracy', result.accuracy)}, "
        f"test accuracy {shown('accuracy', result.test_accuracy)}"
    )
    took = f"after {result.epochs} epochs ({duration(result.train_seconds)} of training)"
    typer.echo(f"student {result.arch_id}: {accuracies} {took}")
    for name in result.files:
        typer.echo(str(result.folder / name))


@contextlib.contextmanager
def _progress(epochs: int) -> Iterator[Callable[[EpochReport], None]]:
    """Give what to call after each epoch: a progress bar on a terminal, else a plain line."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        yield _PlainLines()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=epochs)
        accuracy = ""

        def on_epoch(report: EpochReport) -> None:
            nonlocal accuracy
            if report.accuracy is not None:
                accuracy = f"  accuracy {shown('accuracy', report.accuracy)}"
            bar.update(task, completed=report.epoch, description=f"loss {report.loss:.4f}{accuracy}")

        yield on_epoch


class _PlainLines:
    """Prints one line an epoch, with the time left by the pace since the start."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._epochs = 0

    def __call__(self, report: EpochReport) -> None:
        """Print `report`."""
        self._epochs += 1
        pace = (time.monotonic() - self._begun) / self._epochs
        left = duration(pace * (report.epochs - report.epoch))
        accuracy = f", accuracy {shown('accuracy', report.accuracy)}" if report.accuracy is not None else ""
        typer.echo(f"epoch {report.epoch}/{report.epochs}: loss {report.loss:.4f}{accuracy}, {left} left")
