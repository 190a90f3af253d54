"""The progress of trainings in the terminal: a bar that is drawn anew, or plain lines where nothing can be."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from kdnas.report.wording import duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from kdnas.core.objective import Quantity
    from kdnas.plan.training import Progress


class TrainingLines:
    """Prints one line a training that ended, with its score and the time left by the pace so far."""

    def __init__(self, console: Console, score: Quantity):
        self._console, self._score = console, score
        self._begun = time.monotonic()
        self.ended = 0
        self.failures: list[str] = []

    def print_end(self, done: int, total: int, what: str, outcome: str, failure: str) -> None:
        """Print that the training `what` ended with `outcome`, or, where that is empty, why it failed."""
        from kdnas.cli._terminal import say

        self.ended += 1
        if not outcome:
            self.failures.append(failure)
            outcome = f"failed: {failure}"
        left = f"  {duration((time.monotonic() - self._begun) / done * (total - done))} left" if done < total else ""
        say(self._console, f"[{done}/{total}]{left}  {what}: {outcome}")


class TrainingView:
    """Shows the news of trainings that follow each other, and lines between them. This one shows lines alone."""

    def __call__(self, progress: Progress, label: str = "") -> None:
        """Show a training's progress; `label` names it where there are several."""

    def notify(self, line: str) -> None:
        """Print `line`."""
        typer.echo(line)


@contextlib.contextmanager
def training_view(*, quiet: bool = False) -> Iterator[TrainingView]:
    """Give what shows a training on this terminal; a quiet one shows no progress and prints lines on standard error."""
    from kdnas.cli._terminal import console, redraws

    if quiet:
        yield _Quiet()
        return
    terminal = console()
    if not redraws(terminal):
        yield _PlainLines()
        return
    from rich.live import Live

    bar = _Bar(terminal)
    with Live(console=terminal, get_renderable=bar.screen, refresh_per_second=4, transient=True):
        yield bar


class _Quiet(TrainingView):
    def notify(self, line: str) -> None:
        """Print `line` where it disturbs no program."""
        typer.echo(line, err=True)


class _Clock:
    """How long all has been going on here, and how much of the present training is left by its pace."""

    def __init__(self, read: Callable[[], float] = time.monotonic):
        self._read = read
        self._label: str | None = None
        self._opened = self._began = read()
        self._done_before = self._done = 0.0

    def take(self, progress: Progress, label: str) -> bool:
        """Take in the news; return whether another training has begun with it."""
        another = label != self._label
        if another:
            # The first news of a training is of what was there before, or of its first epoch.
            self._label, self._began, self._done_before = label, self._read(), progress.done
        self._done = progress.done
        return another

    @property
    def elapsed(self) -> str:
        """Such as "2 min 3 s elapsed"."""
        return f"{duration(self._read() - self._opened)} elapsed"

    @property
    def left(self) -> str:
        """Such as "4 min 2 s left"; empty before there is a pace."""
        fresh = self._done - self._done_before
        if fresh <= 0:
            return ""
        return f"{duration((self._read() - self._began) / fresh * (1.0 - self._done))} left"


class _PlainLines(TrainingView):
    """Prints a line for each news, with the time left by the pace since the training's first one."""

    def __init__(self) -> None:
        self._clock = _Clock()

    def __call__(self, progress: Progress, label: str = "") -> None:
        """Print `progress`."""
        self._clock.take(progress, label)
        left = f", {self._clock.left}" if self._clock.left else ""
        score = f", {_score(progress)}" if progress.score is not None else ""
        typer.echo(f"{_where(progress, label)}: loss {progress.loss:.4f}{score}{left}")


class _Bar(TrainingView):
    """Two lines that are drawn anew: where the training is, and a bar with the time; printed lines stand above them."""

    def __init__(self, terminal: Console):
        self._terminal = terminal
        self._clock = _Clock()
        self._progress: Progress | None = None
        self._label, self._score = "", ""

    def __call__(self, progress: Progress, label: str = "") -> None:
        """Take in `progress`; the screen redraws by itself."""
        if self._clock.take(progress, label):
            self._score = ""
        self._label, self._progress = label, progress
        if progress.score is not None:
            self._score = f"  {_score(progress)}"

    def notify(self, line: str) -> None:
        """Print `line` above the bar."""
        self._terminal.print(line, markup=False)

    def screen(self) -> RenderableType:
        """Return what is shown now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress = self._progress
        if progress is None:
            return Text(f"preparing, {self._clock.elapsed}", style="dim")
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=1.0, completed=progress.done, width=32),
            f"{progress.done:.0%}",
            Text(", ".join(filter(None, (self._clock.elapsed, self._clock.left))), style="dim"),
        )
        return Group(Text(f"{_where(progress, self._label)}  loss {progress.loss:.4f}{self._score}"), row)


def _score(progress: Progress) -> str:
    assert progress.score is not None
    return f"{progress.quantity.name} {progress.quantity.shown(progress.score)}"


def _where(progress: Progress, label: str) -> str:
    """Return where a training is: "epoch 3/20", before it the step where there are several, and the training."""
    step = f"step {progress.step}/{progress.steps} {progress.name}, " if progress.steps > 1 else ""
    return f"{label}{': ' if label else ''}{step}{progress.at}"
