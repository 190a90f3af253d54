"""How a search is seen while it runs: live on a terminal, as plain lines in a file, or as JSON lines."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdnas.cli._terminal import printed_front, say
from kdnas.controller.events import (
    Advanced,
    Event,
    Note,
    Ready,
    RepeatEnded,
    RepeatStarted,
    SearchEnded,
    StudyEnded,
    TrialEnded,
    TrialStarted,
    finite,
    plain_event,
)
from kdnas.controller.stopping import budget_in_words
from kdnas.core.objective import ACCURACY, Quantity, breaches
from kdnas.core.words import counted, printable
from kdnas.record.front import best_of, comparable, front, hypervolume, is_near_worst, measured_values
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.report.searched import stuck_at_bounds, tuned_in_words
from kdnas.report.summary import (
    bits_in_words,
    control_in_words,
    goals,
    how_split,
    in_doubt,
    near_chance,
    still_rising,
    supernet_in_words,
    unreached_rung,
    updates,
)
from kdnas.report.tables import front_document
from kdnas.report.wording import duration, label, reason_in_words, reference_in_words, shown, volume_in_words

_FRONT_ROWS = 12
_OTHER_ROWS = 14
"""Lines of the screen that are not students of the front."""
_NAMES_WIDTH = 10
"""Columns before the texts of the screen."""


@dataclass
class _Running:
    """A training that runs: its name, since when it runs, and its share that is done, where that is reported."""

    name: str
    since: float
    done: float = 0.0

    @property
    def stage(self) -> str:
        """How far it is: "40%, ", or "trained, being scored, "; empty where that is not known."""
        return "trained, being scored, " if self.done >= 1 else f"{self.done:.0%}, " if self.done else ""


class Progress:
    """Counts what is done and estimates what is left, of trials first and of retrainings then.

    A training that runs counts by the share that it has done, so that there is an estimate before the first has ended.
    """

    def __init__(self, budget: int | None, clock: Callable[[], float] = time.monotonic):
        self.budget = budget
        self.stage = "preparing"
        self.done = 0
        self.total = 0
        self._clock = clock
        self._stage_began = clock()
        self._done_before = 0
        self._running: dict[str, _Running] = {}
        self.note = Note("")
        """The latest one on what is done outside trainings; empty once a training has started."""

    def take(self, event: Event) -> None:
        """Count `event`."""
        if isinstance(event, Note):
            self.note = event
            return
        if isinstance(event, Advanced):
            if event.key in self._running:
                self._running[event.key].done = event.done
            return
        self.note = Note("")
        if isinstance(event, Ready):
            closed = sum(trial.state in ("complete", "failed", "infeasible") for trial in event.run.trials)
            self._start("searching", closed, self.budget or 0)
        elif isinstance(event, TrialStarted):
            self._running[str(event.number)] = _Running(f"trial {event.number} ({event.arch.arch_id})", self._clock())
        elif isinstance(event, RepeatStarted):
            name = f"trial {event.number} ({event.arch.arch_id}), seed {event.seed}"
            self._running[event.key] = _Running(name, self._clock())
        elif isinstance(event, SearchEnded):
            self._start("retraining the front", 0, event.retrainings)
        elif isinstance(event, (TrialEnded, RepeatEnded)):
            key = str(event.trial.number) if isinstance(event, TrialEnded) else event.key
            self._running.pop(key, None)
            self.done += not (isinstance(event, RepeatEnded) and event.again)
        elif isinstance(event, StudyEnded):
            self._start("writing the report", 0, 0)

    def _start(self, stage: str, done: int, total: int) -> None:
        self.stage, self.done, self.total = stage, done, max(total, done) if total else 0
        self._stage_began, self._done_before = self._clock(), done
        self._running.clear()

    @property
    def counted(self) -> str:
        """Such as `3/40`, or `3` where the budget is not a number of trials."""
        return f"{self.done}/{self.total}" if self.total else str(self.done)

    @property
    def share(self) -> float:
        """How much of the total is done, those that run by their share; trainings."""
        return self.done + sum(training.done for training in [*self._running.values()])

    @property
    def left(self) -> str:
        """The time left in this stage, estimated from its pace; empty where there is no estimate."""
        fresh, missing = self.share - self._done_before, self.total - self.share
        if fresh <= 0 or missing <= 0:  # what is trained is still to be scored, which takes an unknown time
            return ""
        pace = (self._clock() - self._stage_began) / fresh
        return f"{duration(pace * missing)} left"

    @property
    def lasting(self) -> str:
        """How long this stage has lasted."""
        return f"for {duration(self._clock() - self._stage_began)}"

    @property
    def running(self) -> list[str]:
        """What trains or is scored now: its share that is done, and since when."""
        now = self._clock()
        return [
            f"{training.name} {training.stage}for {duration(now - training.since)}"
            for training in [*self._running.values()]  # a screen asks while trainings begin and end
        ]


class View(ABC):
    """Watches a search. Use as a context manager; `observe` takes every event, `close` the finished run."""

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the terminal."""
        self.release()

    def release(self) -> None:  # noqa: B027 - most views hold nothing
        """Let go of the terminal."""

    @abstractmethod
    def observe(self, event: Event) -> None:
        """Show `event`."""

    @abstractmethod
    def close(self, run: RunRecord, written: Sequence[Path], skipped: Sequence[str] = ()) -> None:
        """Show the result and what was written."""


def trial_line(run: RunRecord, trial: TrialRecord) -> str:
    """Return one line on a closed trial."""
    head = f"trial {trial.number:>4}  {trial.arch.arch_id}  "
    if run.config.rungs:
        head += f"{trial.fidelity.words}  "
    if trial.state != "complete":
        return f"{head}{trial.state}: {printable(reason_in_words(trial.reason, run.score))}"
    values = measured_values(trial)
    # By their names in a study, which the log of a search is looked through for.
    numbers = "  ".join(f"{name} {shown(name, values[name], run.score)}" for name in run.quantities if name in values)
    return f"{head}{numbers}  ({trial.train_seconds:.1f} s{', enqueued' if trial.enqueued else ''})"


def _whole(line: str, width: int) -> str:
    """Return `line` broken so that no number loses its unit: only at double spaces."""
    lines = [""]
    for part in line.split("  "):
        longer = f"{lines[-1]}  {part}" if lines[-1] else part
        lines[-1:] = [longer] if len(longer) <= width or not lines[-1] else [lines[-1], part]
    return "\n".join(lines)


def teacher_lines(run: RunRecord) -> list[str]:
    """Return one line on each teacher, none where there is no teacher."""
    lines = []
    for teacher in run.teachers.values():
        numbers = ", ".join(f"{label(name)} {shown(name, value, run.score)}" for name, value in teacher.values.items())
        score = f"validation {label(run.score.name)} {run.score.shown(teacher.score)}"
        lines.append(f"teacher {teacher.name}: {score}, {numbers}")
    return lines


class PlainView(View):
    """One line an event, for logs, pipes and terminals that cannot redraw; one line at intervals where nothing ends."""

    def __init__(self, console: Console, budget: int | None, *, interval_s: float = 60.0):
        self._console = console
        self._progress = Progress(budget)
        self._score = ACCURACY
        self._interval_s = interval_s
        self._printed = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> PlainView:
        threading.Thread(target=self._print_at_intervals, daemon=True).start()
        return self

    def release(self) -> None:
        """Tell nothing any more."""
        self._ended.set()

    def observe(self, event: Event) -> None:
        """Print `event`."""
        with self._lock:
            self._progress.take(event)
            self._score = event.run.score if isinstance(event, Ready) else self._score
            self._print(self._lines(event))

    def print_progress(self) -> None:
        """Print how far everything is."""
        progress = self._progress
        with self._lock:
            count = f"[{progress.counted}]  " if progress.total or progress.done else ""
            passing = f": {progress.note.text}" if progress.note.passing else ""  # others are lines already
            what = "; ".join(progress.running) or f"{progress.stage} {progress.lasting}{passing}"
            self._print([f"{count}{f'{progress.left}  ' if progress.left else ''}{what}"])

    def _print_at_intervals(self) -> None:
        while not self._ended.wait(min(self._interval_s, 1.0)):
            if time.monotonic() - self._printed >= self._interval_s:
                self.print_progress()

    def _print(self, lines: Sequence[str]) -> None:
        for line in lines:
            # A file keeps one line an event; on a terminal words stay whole.
            self._console.print(line, markup=False, soft_wrap=not self._console.is_terminal)
            self._printed = time.monotonic()

    def _lines(self, event: Event) -> list[str]:
        progress = self._progress
        if isinstance(event, Note):
            return [] if event.passing else [event.text]
        if isinstance(event, Ready):
            return ready_lines(event)
        if isinstance(event, TrialEnded):
            left = f"  {progress.left}" if progress.left else ""
            return [f"[{progress.counted}]{left}  {trial_line(event.run, event.trial)}"]
        if isinstance(event, SearchEnded):
            return search_ended_lines(event)
        if isinstance(event, RepeatEnded):
            left = f"  {progress.left}" if progress.left else ""
            return [f"[{progress.counted}]{left}  {repeat_line(event, self._score)}"]
        return []

    def close(self, run: RunRecord, written: Sequence[Path], skipped: Sequence[str] = ()) -> None:
        """Print the final front and what was written."""
        self.release()
        with self._lock:
            _print_result(self._console, run, written, skipped)


class LiveView(View):
    """A screen that redraws: progress, time left, best so far, the front, failures."""

    def __init__(self, console: Console, budget: int | None):
        self._console = console
        self._progress = Progress(budget)
        self._score = ACCURACY
        self._run: RunRecord | None = None
        self._numbers: list[tuple[str, str]] = []
        self._front: list[RenderableType] = []
        self._last_failure = ""
        self._live = Live(console=console, get_renderable=self._screen, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def release(self) -> None:
        """Stop redrawing."""
        self._live.stop()

    def observe(self, event: Event) -> None:
        """Take in `event`; the screen redraws by itself."""
        self._progress.take(event)
        self._score = event.run.score if isinstance(event, Ready) else self._score
        if isinstance(event, RepeatEnded):
            self._last_failure = repeat_line(event, self._score) if event.repeat is None else self._last_failure
        elif isinstance(event, (Ready, TrialEnded, SearchEnded, StudyEnded)):
            self._run = event.run
            self._count(event.run)
        if isinstance(event, Ready):
            for line in ready_lines(event):
                self._live.console.print(line, markup=False)
        elif isinstance(event, TrialEnded):
            if event.trial.state != "complete":
                self._last_failure = trial_line(event.run, event.trial)
        elif isinstance(event, SearchEnded):
            for line in search_ended_lines(event):
                self._live.console.print(line, markup=False)

    def close(self, run: RunRecord, written: Sequence[Path], skipped: Sequence[str] = ()) -> None:
        """Leave the final front on the screen."""
        self._live.stop()
        _print_result(self._console, run, written, skipped)

    def _screen(self) -> RenderableType:
        progress = self._progress
        bar = Table.grid(padding=(0, 1))
        count = progress.counted if progress.done or progress.total else ""
        bar.add_row(
            Text(progress.stage, style="bold"),
            ProgressBar(total=max(progress.total, 1), completed=progress.share, width=24, pulse=progress.total == 0),
            count,
            Text(", ".join(filter(None, (progress.lasting, progress.left))), style="dim"),
        )
        parts: list[RenderableType] = [bar]
        if progress.note.text:
            parts.append(Text(progress.note.text, style="dim"))
        lines = Table.grid(padding=(0, 2))  # a long line goes on below its beginning, whole
        lines.add_column(min_width=8)
        for name, text in self._numbers:
            lines.add_row(name, Text(text))
        for place, text in enumerate(progress.running):
            lines.add_row("" if place else "training", Text(text, style="dim"))
        if self._run is not None:
            failed = sum(trial.state == "failed" for trial in self._run.trials)
            refused = sum(trial.state == "infeasible" for trial in self._run.trials)
            if failed or refused:
                text = f"{failed}, refused after measuring {refused}; last: {self._last_failure}"
                lines.add_row("failed", Text(text, style="yellow"))
        return Group(*parts, lines, *self._front)

    def _count(self, run: RunRecord) -> None:
        """Work out what is shown of `run`: once an event, since the screen is drawn four times a second."""
        complete = comparable(run)
        self._numbers, self._front = [], []
        if not complete:
            return
        sound = [trial for trial in complete if not breaches(measured_values(trial), run.limits)]
        score = run.score
        best = min(sound or complete, key=lambda trial: score.minimised(trial.values[score.name]))
        volume = hypervolume(run)
        self._numbers.append(("best", _whole(trial_line(run, best), self._console.width - _NAMES_WIDTH)))
        self._numbers.append(
            ("front", f"{counted(len(front(run)), 'student')}, hypervolume {volume_in_words(volume or 0.0)}")
        )
        rows = min(max(self._console.height - _OTHER_ROWS, 2), _FRONT_ROWS)
        self._front = [Text(""), printed_front(run, self._console.width, rows)]


def ready_lines(event: Ready) -> list[str]:
    """Return what is known before the first trial."""
    run, data = event.run, event.run.lock.data
    lines = [f"study {run.config.name} in {run.folder}"]
    if not run.trains:
        lines.append(f"scores from {data.name}; kdnas itself trains nothing")
    else:
        scored = f"{data.training_samples} training, {data.validation_samples} validation {run.samples}"
        kept = f"{data.test_samples} test {run.samples} kept for the final front"
        drawn = "as stated" if data.validation_stated else f"{how_split(run)}, seed {run.config.seed}"
        lines.append(f"data {data.name}: {scored} ({drawn}), {kept}")
    lines += teacher_lines(run)
    lines += [f"note: {note}" for note in (run.teacher.notes if run.teacher else ())]
    closed = sum(trial.state in ("complete", "failed", "infeasible") for trial in run.trials)
    budget = budget_in_words(run.config.budget)
    if event.resumed:
        lines.append(f"resuming: {'1 trial is' if closed == 1 else f'{closed} trials are'} done")
    if run.config.rungs:
        steps = ", ".join(fidelity.words for fidelity in run.config.fidelities)
        lines.append(f"rungs of {steps}; promotion by {run.config.promotion_rule}")
    if run.supernet is not None:
        lines.append(supernet_in_words(run.supernet))
    lines += filter(None, [updates(run)])
    room = "as many workers as there is room for"
    crew = room if event.workers is None else counted(event.workers, "worker")
    lines.append(f"{budget} on {crew}, device {run.lock.device}")
    return lines


def search_ended_lines(event: SearchEnded) -> list[str]:
    """Return why the search ended, and what follows."""
    if event.retrainings == 0:
        return [f"search over: {event.reason}"]
    return [
        f"search over: {event.reason}",
        f"retraining {counted(event.finalists, 'student')} of its front {event.run.config.final_fidelity.origin}: "
        f"{counted(event.retrainings, 'training')} to go",
    ]


def repeat_line(event: RepeatEnded, score: Quantity) -> str:
    """Return one line on a retraining."""
    if event.repeat is None:
        return f"retraining of trial {event.number} failed{' and is tried again' * event.again}: {event.failure}"
    repeat = event.repeat
    return (
        f"retrained trial {event.number}, seed {repeat.seed}: {label(score.name)} {score.shown(repeat.score)}, "
        f"test {shown(score, repeat.test_score)} ({repeat.train_seconds:.1f} s)"
    )


def _doubt(run: RunRecord) -> str:
    """Return why not even the best student is one to recommend; empty where it is, or another line has the reason."""
    best = best_of(run, front(run))
    return "" if is_near_worst(run, best.values[run.score.name]) or not run.trains else in_doubt(run, best)


def _print_result(console: Console, run: RunRecord, written: Sequence[Path], skipped: Sequence[str]) -> None:
    members = front(run)
    if not members:
        console.print("no student was trained successfully; trials.csv has the reasons", markup=False)
    else:
        seeds = max(len(member.trial.repeats) for member in members)
        console.print(
            f"\nPareto front: {counted(len(members), 'student')}; {label(run.score.name)}"
            + (" on the validation split" if run.trains else "")
            + (f", mean of {seeds} trainings ± 95 %" if seeds > 1 else "")
        )
        console.print(printed_front(run, console.width))
        remarks = [goals(run), near_chance(run), unreached_rung(run), _doubt(run), bits_in_words(run)]
        remarks += [control_in_words(run), still_rising(run), *tuned_in_words(run), *stuck_at_bounds(run)]
        for remark in filter(None, remarks):
            console.print(remark, markup=False)
        volume = hypervolume(run)
        if volume is not None:
            console.print(
                f"hypervolume {volume_in_words(volume)} below the reference point {reference_in_words(run)}",
                markup=False,
            )
    if not written:
        console.print("nothing new: every trial and retraining was done before, and the report is up to date")
    for path in written:
        say(console, f"wrote {path}")
    for line in skipped:
        say(console, line)


class JsonView(View):
    """One JSON object a line: `{"event": ..., ...}`; the last is `result`.

    Standard output is these lines alone: while the view is open, what a user's module prints goes to the errors.
    """

    def __init__(self) -> None:
        self._lines = sys.stdout
        self._elsewhere = contextlib.redirect_stdout(sys.stderr)

    def __enter__(self) -> JsonView:
        self._elsewhere.__enter__()
        return self

    def release(self) -> None:
        """Give standard output back."""
        self._elsewhere.__exit__(None, None, None)

    def observe(self, event: Event) -> None:
        """Print `event`; events that come many times while a training runs are left to screens."""
        if isinstance(event, Advanced):
            return
        self._print(plain_event(event))

    def close(self, run: RunRecord, written: Sequence[Path], skipped: Sequence[str] = ()) -> None:
        """Print the result."""
        self._print(
            {
                "event": "result",
                **front_document(run),
                "written": [str(path) for path in written],
                "skipped": [*skipped],
            }
        )

    def _print(self, record: dict[str, Any]) -> None:
        self._lines.write(json.dumps(finite(record), default=str, allow_nan=False) + "\n")
        self._lines.flush()
