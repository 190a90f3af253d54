"""The front is earned: its students are measured on the quiet machine and trained anew, several seeds each."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdnas.core.words import counted
from kdnas.errors import TrialError
from kdnas.executors import Executor, Finished
from kdnas.study.events import Note, Observer, RepeatEnded, RepeatStarted
from kdnas.study.finalists import finalists
from kdnas.study.jobs import Job, final_job
from kdnas.study.preparation import Opened
from kdnas.study.products import file_sha256, lost_checkpoints
from kdnas.study.promotion import student_key
from kdnas.study.records import Repeat, TrialRecord
from kdnas.study.workers import wait

Pending = tuple[TrialRecord, int]
"""A finalist, and the seed of a retraining that it still needs."""


class Retraining:
    """The finalists of one study, being retrained by this controller."""

    def __init__(self, opened: Opened, observe: Observer):
        self._opened = opened
        self._observe = observe
        self._config = opened.config
        self._record = opened.record
        self.new_repeats = 0
        self.did_something = False

    def measured_finalists(self) -> tuple[TrialRecord, ...]:
        """Return the finalists, each measured while nothing else runs.

        A quiet measurement replaces the one taken beside other workers and may move a student, or past a bound; others
        then take its place, until every finalist has been measured.
        """
        while True:
            chosen = finalists(self._opened.snapshot())
            unmeasured = [trial for trial in chosen if not self._record.has_final_measurements(trial.number)]
            if not unmeasured or not self._opened.evaluator.measured:
                return chosen
            self._observe(Note(f"measuring {counted(len(unmeasured), 'student')} on the quiet machine"))
            for trial in unmeasured:
                self._measure(trial)

    def pending(self, chosen: tuple[TrialRecord, ...]) -> list[Pending]:
        """Return the retrainings of `chosen` still to do, and of any student those whose weights are lost.

        One that failed as often as the study allows is not tried again.
        """
        wanted, possible = self._config.final.seeds, self._opened.evaluator.repeats
        seeds = wanted if possible is None else min(wanted, possible)
        done = {
            (student_key(trial.arch, trial.tuned), repeat.seed)
            for trial in self._opened.snapshot().trials
            for repeat in trial.repeats
        }
        missing = [
            (trial, seed)
            for seed in range(seeds)
            for trial in chosen
            if (student_key(trial.arch, trial.tuned), seed) not in done
        ]
        return [pair for pair in [*self._lost(), *missing] if self._may_try(*pair)]

    def _lost(self) -> list[Pending]:
        """Return the retrainings whose weights are gone or were altered, and tell each."""
        lost = []
        for trial, repeat, loss in lost_checkpoints(self._opened.snapshot()):
            self._observe(Note(f"{loss.path} {loss.words}: trial {trial.number} is retrained with seed {repeat.seed}"))
            lost.append((trial, repeat.seed))
        return lost

    def run(self, executor: Executor, pending: list[Pending]) -> None:
        """Do the `pending` retrainings; one that fails is tried again, as often as the study allows."""
        self.did_something = True
        limit_s = self._config.time_limit_s(self._config.final_fidelity)
        waiting = deque(pending)
        jobs: dict[str, tuple[TrialRecord, int, Job]] = {}
        while waiting or jobs:
            while waiting and executor.free:
                trial, seed = waiting.popleft()
                job = final_job(self._config, trial.number, trial.arch, trial.tuned, seed)
                started = RepeatStarted(trial.number, seed, trial.arch, job.fidelity)
                jobs[started.key] = (trial, seed, job)
                executor.submit(started.key, job.as_dict(), time_limit_s=limit_s)
                self._observe(started)
            for finished in wait(executor, self._observe):
                trial, seed, job = jobs.pop(finished.key)
                self._keep(trial, seed, job, finished)
                if finished.result is None and self._may_try(trial, seed):
                    waiting.append((trial, seed))

    def finish(self) -> None:
        """Check the finalists against the record, and score the teacher on the test split, as the front has been."""
        evaluator = self._opened.evaluator
        earned = [trial for trial in self._opened.snapshot().trials if trial.repeats]
        for trial in earned:
            evaluator.check(trial)
        if earned and "teacher_test_accuracy" not in self._record.notes():
            self._record.set_note("teacher_test_accuracy", evaluator.teacher_test_accuracy())

    def _measure(self, trial: TrialRecord) -> None:
        measured = {}
        with contextlib.suppress(TrialError):  # not measurable now: the value from its trial stands
            measured = self._opened.evaluator.measure(trial.arch)
        self._record.add_final_measurements(trial.number, measured)

    def _keep(self, trial: TrialRecord, seed: int, job: Job, finished: Finished) -> None:
        if finished.result is None:
            failure = finished.failure or "no reason was given"
            self._record.add_failed_repeat(trial.number, seed, job.fidelity, failure)
            self._observe(RepeatEnded(trial.number, None, failure, seed))
            return
        result: Mapping[str, Any] = finished.result
        written = result.get("checkpoint", "")
        repeat = Repeat(
            seed,
            result["values"]["accuracy"],
            result.get("test_accuracy"),
            job.fidelity,
            result["train_seconds"],
            Path(written).name,
            file_sha256(self._opened.run.folder / written) if written else "",
        )
        self._record.add_repeat(trial.number, repeat)
        self.new_repeats += 1
        self._observe(RepeatEnded(trial.number, repeat, seed=seed))

    def _may_try(self, trial: TrialRecord, seed: int) -> bool:
        failed = self._record.failed_repeats(trial.number, seed, self._config.final_fidelity)
        return failed < self._config.final.attempts
