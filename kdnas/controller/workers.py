"""The workers of a run: started as the study asks, several students in each where that pays, and kept busy.

A pack of students is one job of the executor underneath. One student that fails is one failure. A pack that is lost
whole (a crash, the time limit) does not show whose fault that was, so each of its jobs is run again alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kdnas.controller.events import Note, Observer
from kdnas.controller.preparation import Opened
from kdnas.errors import TrialError
from kdnas.executors import EXECUTORS, Evaluate, Executor, Finished
from kdnas.outlets import Notify
from kdnas.record.records import Result
from kdnas.workshop.evaluators import Evaluator, Progress
from kdnas.workshop.jobs import Job


def start_executor(opened: Opened, observe: Observer) -> Executor[Job, Result]:
    """Return the study's executor with its workers starting; `observe` gets the address to watch them at."""
    section = opened.config.executor
    offered = {
        "workers": opened.crew,
        "threads": opened.threads,
        "time_limit_s": opened.config.budget.trial_time_limit_s,
        "devices": torch.cuda.device_count() if opened.device.type == "cuda" else 0,
    }
    taken = {name: value for name, value in offered.items() if name in EXECUTORS.options(section.type).model_fields}
    size = _measured_size(opened, observe) if section.per_device == "auto" else section.per_device
    plan = opened.workplan if size == 1 else PackedWorkplan(opened.workplan)
    if opened.site is not None:
        opened.site.leave()  # its worker has a device
    options = section.options if opened.site is None else opened.site.options
    built: Executor[Any, Any] = EXECUTORS.build(section.type, plan, **{**taken, **options})
    if built.notice:
        observe(Note(built.notice))
    return built if size == 1 else PackedExecutor(built, size, time_limit_s=opened.config.budget.trial_time_limit_s)


def _measured_size(opened: Opened, observe: Observer) -> int:
    """Return how many students each worker should train at once, noted in the run with what was measured."""
    packing = opened.evaluator.at_once()
    if packing.words:
        opened.record.set_note("packing", packing.words)
        observe(Note(packing.words))
    return packing.size


@dataclass(frozen=True)
class Pack:
    """Jobs for one worker at once."""

    jobs: tuple[Job, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form."""
        return {"pack": [job.as_dict() for job in self.jobs]}


@dataclass(frozen=True)
class PackResult:
    """What came of each job of a pack: its result, or the reason why it failed."""

    outcomes: tuple[Result | str, ...]
    values: Mapping[str, float] = field(default_factory=dict)
    """A pack has none of its own."""


@dataclass(frozen=True)
class _Kept:
    key: str
    job: Job
    time_limit_s: float


class PackedExecutor(Executor[Job, Result]):
    """An executor over another: its workers take up to `size` jobs at once.

    Jobs are sent when `wait` is called, shared out evenly among the workers that are free then. `time_limit_s` is for
    jobs without a limit of their own; a pack may take as long as its jobs one after the other.
    """

    def __init__(self, inner: Executor[Pack, PackResult], size: int, *, time_limit_s: float):
        self._inner = inner
        self._size = size
        self._time_limit_s = time_limit_s
        self._waiting: list[_Kept] = []
        self._lost: list[_Kept] = []
        self._sent: dict[str, list[_Kept]] = {}
        self._numbers = itertools.count()

    @property
    def free(self) -> int:
        """The number of jobs that can be submitted now without queueing."""
        return max(0, (self._inner.free - len(self._lost)) * self._size - len(self._waiting))

    @property
    def running(self) -> int:
        """The number of jobs submitted and not yet finished."""
        return len(self._waiting) + len(self._lost) + sum(map(len, self._sent.values()))

    def submit(self, key: str, job: Job, *, time_limit_s: float | None = None) -> None:
        """Keep `job` for the next `wait`. Raises RuntimeError when no worker has room for it."""
        if not self.free:
            raise RuntimeError("no worker is free")
        self._waiting.append(_Kept(key, job, self._time_limit_s if time_limit_s is None else time_limit_s))

    def wait(self, timeout_s: float) -> list[Finished[Result]]:
        """Send what is kept, and return the jobs that ended within `timeout_s`."""
        self._send()
        return [ended for finished in self._inner.wait(timeout_s) for ended in self._opened(finished)]

    def take_notes(self) -> list[str]:
        """Return the passing lines that workers sent since the last call."""
        return self._inner.take_notes()

    def take_notices(self) -> list[str]:
        """Return what the user should know of the workers since the last call."""
        return self._inner.take_notices()

    def take_progress(self) -> dict[str, float]:
        """Return how far running jobs have come: each as far as its pack."""
        packs = self._inner.take_progress().items()
        return {job.key: share for pack, share in packs for job in self._sent.get(pack, ())}

    def close(self) -> None:
        """Stop every worker at once, dropping what runs."""
        self._inner.close()

    def _send(self) -> None:
        while self._lost and self._inner.free:
            self._submit([self._lost.pop()])
        for left in range(self._inner.free, 0, -1):
            share = -(-len(self._waiting) // left)
            if share:
                self._submit(self._waiting[:share])
                self._waiting = self._waiting[share:]

    def _submit(self, jobs: list[_Kept]) -> None:
        key = f"pack {next(self._numbers)}"
        self._sent[key] = jobs
        limit = sum(kept.time_limit_s for kept in jobs)
        self._inner.submit(key, Pack(tuple(kept.job for kept in jobs)), time_limit_s=limit)

    def _opened(self, finished: Finished[PackResult]) -> Iterable[Finished[Result]]:
        jobs = self._sent.pop(finished.key)
        if finished.result is not None:
            for kept, outcome in zip(jobs, finished.result.outcomes, strict=True):
                if isinstance(outcome, str):
                    yield Finished(kept.key, failure=outcome)
                else:
                    yield Finished(kept.key, outcome)
        elif len(jobs) == 1:
            yield Finished(jobs[0].key, failure=finished.failure)
        else:
            self._lost += jobs


@dataclass(frozen=True)
class PackedWorkplan:
    """Opens a worker's evaluator and has it answer packs: picklable, called once in each worker."""

    workplan: Callable[[], Evaluator]

    def __call__(self) -> Evaluate[Pack, PackResult]:
        """Return what answers packs."""
        return _Packed(self.workplan())


class _Packed:
    def __init__(self, evaluator: Evaluator):
        self.evaluator = evaluator

    @property
    def notify(self) -> Notify:
        """Where the evaluator's lines go."""
        return self.evaluator.notify

    @notify.setter
    def notify(self, notify: Notify) -> None:
        self.evaluator.notify = notify

    @property
    def progress(self) -> Progress:
        """Where the evaluator reports its progress."""
        return self.evaluator.progress

    @progress.setter
    def progress(self, progress: Progress) -> None:
        self.evaluator.progress = progress

    def __call__(self, pack: Pack) -> PackResult:
        """Return the outcome of every job of a pack.

        A lone job may raise what it likes, as without packs: the worker handles it.
        """
        jobs = pack.jobs
        outcomes: Sequence[Result | TrialError]
        outcomes = [self.evaluator(jobs[0])] if len(jobs) == 1 else self.evaluator.together(jobs)
        return PackResult(tuple(str(one) if isinstance(one, TrialError) else one for one in outcomes))
