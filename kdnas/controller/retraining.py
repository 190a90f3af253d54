"""The front is earned: its students are measured on the quiet machine and trained anew, several seeds each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from pathlib import Path

from kdnas.controller.events import Note, Observer, RepeatEnded, RepeatStarted
from kdnas.controller.finalists import finalists
from kdnas.controller.preparation import Opened
from kdnas.controller.promotion import student_key
from kdnas.controller.workers import wait
from kdnas.core.words import counted
from kdnas.errors import TrialError
from kdnas.executors import Executor, Finished
from kdnas.record.front import is_flat, is_near_worst, picked_or_recommended
from kdnas.record.products import lost_checkpoints
from kdnas.record.records import Control, Repeat, TrialRecord
from kdnas.study.config import StudyConfig
from kdnas.workshop.jobs import Job, Result, control_job, final_job

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

    def run(self, executor: Executor[Job, Result], pending: list[Pending]) -> None:
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
                executor.submit(started.key, job, time_limit_s=limit_s)
                self._observe(started)
            for finished in wait(executor, self._observe):
                trial, seed, job = jobs.pop(finished.key)
                self._keep(trial, seed, job, finished)
                if finished.result is None and self._may_try(trial, seed):
                    waiting.append((trial, seed))

    @property
    def length_is_open(self) -> bool:
        """Whether the study leaves it to the run how long a final training is, and that is not known yet."""
        until_flat = self._config.final.until == "flat" and self._opened.run.trains
        return until_flat and "final_epochs" not in self._record.notes()

    def find_length(self, executor: Executor[Job, Result], chosen: tuple[TrialRecord, ...]) -> None:
        """Find out how long a final training is: doubled until the best of `chosen` gains less than a point by it.

        Each length is a training from its start, with a whole learning-rate schedule, since the score in the middle of
        one says little. What was tried before an interruption is in the record.
        """
        self.did_something = True
        final = self._config.final
        epochs = final.epochs or self._config.training.epochs
        run, score = self._opened.run, self._opened.run.score
        student = min(chosen, key=lambda trial: score.minimised(trial.values[score.name]))
        tried = {int(length): score for length, score in self._record.notes().get("lengths", {}).items()}
        before: int | None = None
        while True:
            if epochs not in tried:
                try:
                    tried[epochs] = self._score_of_length(executor, student, epochs)
                except TrialError as error:
                    told = f"a training of {counted(epochs, 'epoch')} failed, and no longer one is tried: {error}"
                    epochs = before or epochs
                    break
                self._record.set_note("lengths", tried)
            gain = None if before is None else score.gain(tried[epochs], tried[before])
            has_begun = not is_near_worst(run, tried[epochs])  # flat at its start is no curve's end
            if before is not None and gain is not None and is_flat(run, gain) and has_begun:
                told = f"{counted(before, 'epoch')} a final training: {epochs} gain {score.shown_points(gain)}"
                epochs = before
                break
            if 2 * epochs > final.max_epochs:
                rising = "" if gain is None else f", though the last doubling gained {score.shown_points(gain)}"
                told = (
                    f"{counted(epochs, 'epoch')} a final training: twice as many are more than final.max_epochs{rising}"
                )
                break
            before, epochs = epochs, 2 * epochs
        self._record.set_note("final_epochs", epochs)
        self._observe(Note(told))

    def settle_length(self) -> None:
        """Train finalists for as long as the record says, where the run found that out."""
        epochs = self._record.notes().get("final_epochs")
        if self._config.final.until == "flat" and epochs is not None:
            self._config = self._config.with_final_epochs(epochs)

    def _score_of_length(self, executor: Executor[Job, Result], trial: TrialRecord, epochs: int) -> float:
        config = self._config.with_final_epochs(epochs)
        job = dataclasses.replace(
            final_job(config, trial.number, trial.arch, trial.tuned, 0), checkpoint=None, test=False
        )
        self._observe(
            Note(f"student {trial.arch.arch_id}: trained for {counted(epochs, 'epoch')}, to see how long pays")
        )
        score = self._opened.run.score
        value = float(self._alone(executor, "length", job, config).values[score.name])
        self._observe(Note(f"student {trial.arch.arch_id}: {score.shown(value)} after {counted(epochs, 'epoch')}"))
        return value

    def _alone(self, executor: Executor[Job, Result], key: str, job: Job, config: StudyConfig) -> Result:
        """Return the result of one training, while nothing else runs. Raises TrialError where it fails."""
        executor.submit(key, job, time_limit_s=config.time_limit_s(job.fidelity))
        while True:
            for ended in wait(executor, self._observe):
                if ended.result is None:
                    raise TrialError(ended.failure or "no reason was given")
                return ended.result

    def uncontrolled(self) -> TrialRecord | None:
        """Return the picked student, where the study wants it trained without its teacher too and it is not yet."""
        run = self._opened.snapshot()
        if (
            not self._config.final.control
            or not run.trains
            or not any(t.weight for t in run.config.distillation.losses)
        ):
            return None
        picked = picked_or_recommended(run)
        if picked is None or not picked.trial.repeats:
            return None
        known = {control.number for control in run.controls}
        return None if picked.trial.number in known else picked.trial

    def control(self, executor: Executor[Job, Result], trial: TrialRecord) -> None:
        """Train the student of `trial` without its teacher; a failure is recorded, and not tried again."""
        self.did_something = True
        student = f"student {trial.arch.arch_id}"
        self._observe(Note(f"training {student} once without its teacher, to see what distillation adds"))
        job = control_job(self._config, trial.number, trial.arch, trial.tuned)
        try:
            result = self._alone(executor, "control", job, self._config)
        except TrialError as error:
            self._record.add_control(Control(trial.number, None, None, job.fidelity, failure=str(error)))
            self._observe(Note(f"{student} could not be trained without its teacher: {error}"))
            return
        score = self._opened.run.score
        value = result.values[score.name]
        self._record.add_control(Control(trial.number, value, result.test, job.fidelity, result.train_seconds))
        self._observe(Note(f"{student} without its teacher: {score.name} {score.shown(value)}"))

    def finish(self) -> None:
        """Check the finalists against the record, and score the teacher on the test split, as the front has been."""
        evaluator = self._opened.evaluator
        earned = [trial for trial in self._opened.snapshot().trials if trial.repeats]
        for trial in earned:
            evaluator.check(trial)
        if earned and not {"teacher_test_score", "teacher_test_accuracy"} & self._record.notes().keys():
            self._record.set_note("teacher_test_score", evaluator.teacher_test_score())

    def _measure(self, trial: TrialRecord) -> None:
        measured = {}
        with contextlib.suppress(TrialError):  # not measurable now: the value from its trial stands
            measured = self._opened.evaluator.measure(trial.arch)
        self._record.add_final_measurements(trial.number, measured)

    def _keep(self, trial: TrialRecord, seed: int, job: Job, finished: Finished[Result]) -> None:
        if finished.result is None:
            failure = finished.failure or "no reason was given"
            self._record.add_failed_repeat(trial.number, seed, job.fidelity, failure)
            self._observe(RepeatEnded(trial.number, None, failure, seed))
            return
        result = finished.result
        repeat = Repeat(
            seed,
            result.values[self._opened.run.score.name],
            result.test,
            job.fidelity,
            result.train_seconds,
            Path(result.checkpoint).name,
            result.sha256,
        )
        self._record.add_repeat(trial.number, repeat)
        self.new_repeats += 1
        self._observe(RepeatEnded(trial.number, repeat, seed=seed))

    def _may_try(self, trial: TrialRecord, seed: int) -> bool:
        failed = self._record.failed_repeats(trial.number, seed, self._config.final_fidelity)
        return failed < self._config.final.attempts
