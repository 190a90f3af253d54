"""The progress of a training in the terminal: a bar, or plain lines where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from kdnas.report.wording import duration, shown

if TYPE_CHECKING:
    from kdnas.study.training_steps import Progress

OnProgress = Callable[["Progress", str], None]
"""Takes the news of a training, and what to call the training where several follow each other."""


@contextlib.contextmanager
def training_progress(*, quiet: bool = False) -> Iterator[OnProgress]:
    """Give what to call with a training's news: a progress bar on a terminal, else a plain line each; or nothing."""
    from rich.console import Console

    console = Console()
    if quiet:
        yield lambda progress, label: None
        return
    if not console.is_terminal:
        yield _PlainLines()
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task, current, accuracy = bar.add_task("", total=1.0), "", ""

        def on_progress(progress: Progress, label: str) -> None:
            nonlocal current, accuracy
            if label != current:
                current, accuracy = label, ""
                bar.reset(task, total=1.0)
            if progress.accuracy is not None:
                accuracy = f"  accuracy {shown('accuracy', progress.accuracy)}"
            where = f"{_where(progress, label)}  loss {progress.loss:.4f}{accuracy}"
            bar.update(task, completed=progress.done, description=where)

        yield on_progress


class _PlainLines:
    """Prints a line for each news, with the time left by the pace since the training's first one."""

    def __init__(self) -> None:
        self._label: str | None = None
        self._begun = (0.0, 0.0)

    def __call__(self, progress: Progress, label: str) -> None:
        """Print `progress`."""
        now = time.monotonic()
        if label != self._label:
            self._label, self._begun = label, (now, progress.done)
        begun, done = self._begun
        pace = (now - begun) / (progress.done - done) if progress.done > done else None
        left = "" if pace is None else f", {duration(pace * (1.0 - progress.done))} left"
        accuracy = f", accuracy {shown('accuracy', progress.accuracy)}" if progress.accuracy is not None else ""
        typer.echo(f"{_where(progress, label)}: loss {progress.loss:.4f}{accuracy}{left}")


def _where(progress: Progress, label: str) -> str:
    """Return where a training is: "epoch 3/20", before it the step where there are several, and the training."""
    step = f"step {progress.step}/{progress.steps} {progress.name}, " if progress.steps > 1 else ""
    return f"{label}{': ' if label else ''}{step}{progress.at}"
