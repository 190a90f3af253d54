"""How far a search is: what is done, what runs since when, and how much time is left by its pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

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
)
from kdnas.report.wording import duration


@dataclass
class _Running:
    """A training that runs: what it is called, since when, and its share that is done, where it says so."""

    name: str
    since: float
    done: float = 0.0


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
        self._note, self._note_since = "", 0.0

    def take(self, event: Event) -> None:
        """Count `event`."""
        if isinstance(event, Note):
            if event.text != self._note:
                self._note, self._note_since = event.text, self._clock()
            return
        if isinstance(event, Advanced):
            if event.key in self._running:
                self._running[event.key].done = event.done
            return
        self._note = ""
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
            self.done += 1
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
        """The time left in this stage, as far as its pace tells."""
        fresh = self.share - self._done_before
        if fresh <= 0 or self.done >= self.total:
            return ""
        pace = (self._clock() - self._stage_began) / fresh
        return f"{duration(max(pace * (self.total - self.share), 0.0))} left"

    @property
    def lasting(self) -> str:
        """How long this stage has lasted."""
        return f"for {duration(self._clock() - self._stage_began)}"

    @property
    def note(self) -> str:
        """What is being done besides trainings and since when; empty where nothing was said."""
        return f"{self._note}, for {duration(self._clock() - self._note_since)}" if self._note else ""

    @property
    def running(self) -> list[str]:
        """What trains now: how far it is, and since when."""
        now = self._clock()
        return [
            f"{training.name} {f'{training.done:.0%}, ' if training.done else ''}for {duration(now - training.since)}"
            for training in [*self._running.values()]  # a screen asks while trainings begin and end
        ]
