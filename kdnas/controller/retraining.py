"""The front is earned: the students that may belong to it are measured on the quiet machine and trained anew.

Whom that is worth is decided on costs by their logarithm: on a linear axis the expensive end hides what the cheap end
adds, and the other way round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from kdnas.controller.events import Note, Observer, RepeatEnded, RepeatStarted
from kdnas.controller.nesting import Nest
from kdnas.controller.preparation import Opened
from kdnas.controller.promotion import student_key
from kdnas.controller.waiting import work_off
from kdnas.core.arch import Arch
from kdnas.core.improvement import free_boxes, improvement
from kdnas.core.logarithms import above_zero, logarithmic
from kdnas.core.measurement import Measurement
from kdnas.core.objective import breaches, minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.promotion import lifted
from kdnas.core.route import RouteInputs, Scored, chain_before, tuning_epochs
from kdnas.core.words import counted
from kdnas.errors import ConfigError, TrialError
from kdnas.executors import Executor, Finished
from kdnas.faults import reach
from kdnas.record.front import beside, comparable, is_flat, is_near_worst, measured_values, picked_or_recommended
from kdnas.record.products import lost_checkpoints
from kdnas.record.records import Control, Repeat, Result, RunRecord, TrialRecord
from kdnas.study.config import StudyConfig
from kdnas.workshop.jobs import Before, Job, LargerStudent, Way, control_job, final_job, measure_job

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
        self._noted: set[str] = set()
        """What trials and retrainings noted: each is told once."""
        self.did_something = False

    def measured_finalists(self, crew: Callable[[], Executor[Job, Result]]) -> tuple[TrialRecord, ...]:
        """Return the finalists, each measured by a worker of `crew` while nothing else runs.

        A quiet measurement replaces the one taken while other workers ran and may move a student, or past a bound;
        others then take its place, until every finalist has been measured.
        """
        while True:
            chosen = finalists(self._opened.snapshot())
            unmeasured = [trial for trial in chosen if not self._record.has_final_measurements(trial.number)]
            if not unmeasured or not self._opened.evaluator.measured:
                return chosen
            self.did_something = True
            self._observe(Note(f"measuring {counted(len(unmeasured), 'student')} on the quiet machine"))
            for trial in unmeasured:
                self._measure(crew(), trial)

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
        """Return the retrainings whose weights are gone or were altered, and report each."""
        lost = []
        for trial, repeat, loss in lost_checkpoints(self._opened.snapshot()):
            self._observe(Note(f"{loss.path} {loss.words}: trial {trial.number} is retrained with seed {repeat.seed}"))
            lost.append((trial, repeat.seed))
        return lost

    def run(self, executor: Executor[Job, Result], pending: list[Pending], chosen: tuple[TrialRecord, ...]) -> None:
        """Do the `pending` retrainings; one that fails is tried again, as often as the study allows.

        Where the finalists are nested a student waits for the one of `chosen` that it is cut out of.
        """
        self.did_something = True
        self._noted |= {note for trial in self._opened.snapshot().trials for note in trial.notes}
        limit_s = self._config.time_limit_s(self._config.final_fidelity)
        waiting = deque(pending)
        nest, ways = self._nest(pending, chosen), self._ways(pending, chosen)
        jobs: dict[str, tuple[TrialRecord, int, Job]] = {}

        def begin() -> bool:
            ready = next((pair for pair in waiting if nest is None or nest.is_ready(*pair)), None)
            if ready is None:
                return False
            waiting.remove(ready)
            trial, seed = ready
            larger = None if nest is None else nest.larger(trial, seed)
            way = ways.get(student_key(trial.arch, trial.tuned))
            others = beside(trial.arch, chosen)
            job = final_job(self._config, trial.number, trial.arch, trial.tuned, seed, larger, way, others)
            started = RepeatStarted(trial.number, seed, trial.arch, job.fidelity)
            jobs[started.key] = (trial, seed, job)
            executor.submit(started.key, job, time_limit_s=limit_s)
            self._observe(started)
            return True

        def end(finished: Finished[Result]) -> None:
            trial, seed, job = jobs.pop(finished.key)
            repeat = self._keep(trial, seed, job, finished)
            if repeat is None and self._may_try(trial, seed):
                waiting.append((trial, seed))
            elif nest is not None:
                nest.end(trial, seed, repeat)

        work_off(executor, begin, end, self._observe)

    def _nest(self, pending: list[Pending], chosen: tuple[TrialRecord, ...]) -> Nest | None:
        """Return what the students of `chosen` are cut out of; None where they all begin alike."""
        if self._config.final_fidelity.start != "nested":
            return None
        undone = [(student_key(trial.arch, trial.tuned), seed) for trial, seed in pending]
        finalists = [*chosen, *(trial for trial, _ in pending)]
        nest = Nest(finalists, self._opened.evaluator.is_part, self._opened.snapshot().trials, undone)
        held = sum(nest.is_held(trial) for trial in chosen)
        those = f"{held} of {counted(len(chosen), 'student')} {'is' if held == 1 else 'are'} cut out of a larger one"
        self._observe(Note(f"{those}, the rest out of the teacher"))
        return nest

    def _ways(self, pending: list[Pending], chosen: tuple[TrialRecord, ...]) -> dict[str, Way]:
        """Return by whom each student is taught, by `student_key`; none of a direct route.

        Assistants are of the finalists: by their scores in the search, and their MACs.
        """
        route, run = self._config.final.route, self._opened.run
        if route == "direct" or run.teacher is None:
            return {}
        students = {trial.arch.arch_id: trial for trial in (*(trial for trial, _ in pending), *chosen)}
        scored = {name: Scored(name, t.values[run.score.name], round(t.values["macs"])) for name, t in students.items()}
        ways = {}
        for trial in students.values():
            name = trial.arch.arch_id
            if route == "shrink" or route == "grow":
                tuning = tuning_epochs(self._config.final_fidelity.epochs)
                ways[student_key(trial.arch, trial.tuned)] = Way(
                    route, (), tuning, trial.proposed or trial.arch.choices
                )
                continue
            inputs = RouteInputs(
                epochs=self._config.final_fidelity.epochs,
                student=scored[name],
                teacher_score=run.teacher.score,
                teacher_macs=run.teacher.values.get("macs"),
                largest_macs=None,
                front=tuple(other for place, other in scored.items() if place != name),
                score=run.score,
            )
            try:
                chain, left = chain_before(route, inputs)
            except ConfigError as error:
                self._observe(Note(f"student {name} is trained directly: {error}"))
                chain, left = (), inputs.epochs
            before = tuple(Before(students[each.network.arch_id].arch, each.epochs) for each in chain)
            ways[student_key(trial.arch, trial.tuned)] = Way(route, before, left)
        return ways

    @property
    def length_is_open(self) -> bool:
        """Whether the study leaves it to the run how long a final training is, and that is not known yet."""
        until_flat = self._config.final.until == "flat" and self._opened.run.trains
        return until_flat and self._record.notes().final_epochs is None

    def find_length(self, executor: Executor[Job, Result], chosen: tuple[TrialRecord, ...]) -> None:
        """Find out how long a final training is: doubled until the best of `chosen` gains less than a point by it.

        Each length is a training from its start, with a whole learning-rate schedule, since the score in the middle of
        one ranks badly. What was tried before an interruption is in the record.
        """
        self.did_something = True
        final = self._config.final
        epochs = final.epochs or self._config.training.epochs
        run, score = self._opened.run, self._opened.run.score
        student = min(chosen, key=lambda trial: score.minimised(trial.values[score.name]))
        tried = dict(self._record.notes().lengths)
        before: int | None = None
        while True:
            if epochs not in tried:
                try:
                    others = beside(student.arch, chosen)
                    tried[epochs] = self._score_of_length(executor, student, epochs, others)
                except TrialError as error:
                    text = f"a training of {counted(epochs, 'epoch')} failed, and no longer one is tried: {error}"
                    epochs = before or epochs
                    break
                self._record.set_note("lengths", tried)
            gain = None if before is None else score.gain(tried[epochs], tried[before])
            has_begun = not is_near_worst(run, tried[epochs])  # flat at its start is no curve's end
            if before is not None and gain is not None and is_flat(run, gain) and has_begun:
                text = f"final trainings have {counted(before, 'epoch')}: {epochs} gain only {score.shown_points(gain)}"
                epochs = before
                break
            if 2 * epochs > final.max_epochs:
                rising = "" if gain is None else f" (the last doubling gained {score.shown_points(gain)})"
                text = f"final trainings have {counted(epochs, 'epoch')}: twice as many exceed final.max_epochs{rising}"
                break
            before, epochs = epochs, 2 * epochs
        self._record.set_note("final_epochs", epochs)
        self._observe(Note(text))

    def settle_length(self) -> None:
        """Train finalists for as long as the record states, where the run has determined that."""
        epochs = self._record.notes().final_epochs
        if self._config.final.until == "flat" and epochs is not None:
            self._config = self._config.with_final_epochs(epochs)

    def _score_of_length(
        self, executor: Executor[Job, Result], trial: TrialRecord, epochs: int, others: Iterable[Arch]
    ) -> float:
        config = self._config.with_final_epochs(epochs)
        job = final_job(config, trial.number, trial.arch, trial.tuned, 0, others=others)
        job = dataclasses.replace(job, checkpoint=None, test=False)
        self._observe(
            Note(f"training student {trial.arch.arch_id} for {counted(epochs, 'epoch')}, to choose final.epochs")
        )
        score = self._opened.run.score
        value = float(self._alone(executor, "length", job, config).values[score.name])
        self._observe(Note(f"student {trial.arch.arch_id}: {score.shown(value)} after {counted(epochs, 'epoch')}"))
        return value

    def _alone(self, executor: Executor[Job, Result], key: str, job: Job, config: StudyConfig) -> Result:
        """Return the result of one training, while nothing else runs. Raises TrialError where it fails."""
        executor.submit(key, job, time_limit_s=config.time_limit_s(job.fidelity))
        ended: list[Finished[Result]] = []
        work_off(executor, lambda: False, ended.append, self._observe)
        if (result := ended[0].result) is None:
            raise TrialError(ended[0].failure or "no reason was given")
        return result

    def uncontrolled(self) -> list[tuple[TrialRecord, bool]]:
        """Return the picked student, where the study wants it trained on labels alone too and it is not yet.

        And with True where it wants it trained directly too.
        """
        run, final = self._opened.snapshot(), self._config.final
        distils = run.trains and any(term.weight for term in run.config.distillation.losses)
        wanted = [direct for direct, asked in ((False, final.control), (True, final.compare_direct)) if asked]
        picked = picked_or_recommended(run) if distils and wanted else None
        if picked is None or not picked.trial.repeats:
            return []
        if all(repeat.route == "direct" for repeat in picked.trial.repeats):
            wanted = [direct for direct in wanted if not direct]  # its retrainings are that
        known = {(control.number, control.direct) for control in run.controls}
        return [(picked.trial, direct) for direct in wanted if (picked.trial.number, direct) not in known]

    def control(self, executor: Executor[Job, Result], trial: TrialRecord, direct: bool) -> None:
        """Train the student of `trial` on labels alone, or directly; a failure is recorded, and not tried again."""
        self.did_something = True
        student, how = f"student {trial.arch.arch_id}", "directly" if direct else "on labels alone"
        adds = f"the route {self._config.final.route}" if direct else "distillation"
        self._observe(Note(f"training {student} once {how}, to measure what {adds} adds"))
        student_of = self._config, trial.number, trial.arch, trial.tuned, 0, self._larger_of_first(trial)
        others = beside(trial.arch, self._opened.snapshot().retrained)
        job = final_job(*student_of, others=others) if direct else control_job(*student_of)
        job = dataclasses.replace(job, checkpoint=None)
        fidelity = self._config.final_fidelity
        try:
            result = self._alone(executor, "control", job, self._config)
        except TrialError as error:
            self._record.add_control(Control(trial.number, None, None, fidelity, failure=str(error), direct=direct))
            self._observe(Note(f"{student} could not be trained {how}: {error}"))
            return
        score = self._opened.run.score
        value = result.values[score.name]
        self._record.add_control(Control(trial.number, value, result.test, fidelity, result.train_seconds, "", direct))
        self._observe(Note(f"{student} {how}: {score.name} {score.shown(value)}"))

    def _larger_of_first(self, trial: TrialRecord) -> LargerStudent | None:
        """Return the student that the first retraining of `trial` was cut out of, where it was cut out of one."""
        repeats = {(other.number, repeat.seed): (other, repeat) for other in self._opened.snapshot().trials
                   for repeat in other.repeats}  # fmt: skip
        _, first = repeats.get((trial.number, 0), (trial, None))
        if first is None or first.cut_from is None or (first.cut_from, 0) not in repeats:
            return None
        larger, trained = repeats[first.cut_from, 0]
        return LargerStudent(larger.number, larger.arch, f"checkpoints/{trained.checkpoint}")

    def finish(self) -> None:
        """Check the finalists against the record, and score the teacher on the test split, as the front has been."""
        evaluator = self._opened.evaluator
        earned = self._opened.snapshot().retrained
        for trial in earned:
            evaluator.check(trial)
        if earned and not self._record.notes().teacher_tested:
            self._record.set_note("teacher_further", dict(evaluator.teacher_further()))
            self._record.set_note("teacher_test_score", evaluator.teacher_test_score())

    def _measure(self, executor: Executor[Job, Result], trial: TrialRecord) -> None:
        measured: Mapping[str, Measurement] = {}
        with contextlib.suppress(TrialError):  # not measurable now: the value from its trial stands
            job = measure_job(self._config, trial.arch, trial.tuned)
            measured = self._alone(executor, "measure", job, self._config).measurements
        self._record.add_final_measurements(trial.number, measured)

    def _keep(self, trial: TrialRecord, seed: int, job: Job, finished: Finished[Result]) -> Repeat | None:
        """Record how a retraining ended, and return it; None where it failed."""
        place = "" if finished.result is None else finished.result.checkpoint
        if place and not self._opened.files.have(place).exists():
            finished = Finished(finished.key, failure="its weights never arrived: the store has lost them")
        if finished.result is None:
            failure = finished.failure or "no reason was given"
            self._record.add_failed_repeat(trial.number, seed, job.fidelity, failure)
            self._observe(RepeatEnded(trial.number, None, failure, seed, again=self._may_try(trial, seed)))
            return None
        result = finished.result
        repeat = Repeat(
            seed,
            result.values[self._opened.run.score.name],
            result.test,
            job.fidelity,
            result.train_seconds,
            Path(result.checkpoint).name,
            result.sha256,
            result.further,
            None if job.larger is None else job.larger.number,
            {score.name: result.values[score.name] for score in self._opened.run.scores_by_task},
            direct=bool(result.went),
        )
        reach("retraining")
        self._record.add_repeat(trial.number, repeat)
        reach("retrained")
        self.new_repeats += 1
        self._observe(RepeatEnded(trial.number, repeat, seed=seed))
        for note in result.notes:
            if note not in self._noted:
                self._noted.add(note)
                self._observe(Note(f"retraining of trial {trial.number}: {note}"))
        return repeat

    def _may_try(self, trial: TrialRecord, seed: int) -> bool:
        failed = self._record.failed_repeats(trial.number, seed, self._config.final_fidelity)
        return failed < self._config.final.attempts


_BEYOND = 0.1
"""Of the front's range: how far past its most expensive member the reference is put for the choice of finalists."""
_FEWEST_CHANGES = 3
"""Students with a score at two rungs that are needed to estimate how uncertain a predicted score is."""


def finalists(run: RunRecord) -> tuple[TrialRecord, ...]:
    """Return the front of the search's scores of the highest fidelity, within the limits, in trial order.

    Of a front larger than `final.max_students` the best score stays, then always who adds most hypervolume to those
    chosen. A smaller one is filled with students of lower rungs that may belong to it: whose score, predicted from the
    typical change between rungs and given the benefit of its spread, nobody is known to beat.
    """
    most = run.config.final.max_students
    sound = [trial for trial in comparable(run) if _is_sound(trial, run)]
    values = _values(sound, run)
    kept = non_dominated(values)
    front = [trial for trial, on_front in zip(sound, kept, strict=True) if on_front]
    chosen = [front[place] for place in _largest(values[kept], [], most, run)]
    if front and len(chosen) < most and run.config.rungs:
        lower, forecast = _hopeful(run, sound)
        known = np.concatenate([_values(chosen, run), forecast])
        places = _largest(known, list(range(len(chosen))), most, run)
        chosen += [lower[place - len(chosen)] for place in places[len(chosen) :]]
    return tuple(sorted(chosen, key=lambda trial: trial.number))


def _largest(values: np.ndarray, chosen: list[int], most: int, run: RunRecord) -> list[int]:
    """Return `chosen` and further rows of `values` [N, M], up to `most`: the best score, then the largest gains.

    Of equal gains the better score.
    """
    scale = _scaled(values, run)
    reference = _reference(scale, run)
    score = run.lead
    picked = list(chosen)
    while len(picked) < min(most, len(values)):
        rest = [place for place in range(len(values)) if place not in picked]
        gains = improvement(scale[rest], free_boxes(scale[picked], reference)) if picked else np.zeros(len(rest))
        picked.append(rest[int(np.lexsort((values[rest, score], -gains))[0])])
    return picked


def _hopeful(run: RunRecord, above: list[TrialRecord]) -> tuple[list[TrialRecord], np.ndarray]:
    """Return students that stayed below the rung of `above` and may belong to its front, and their predicted scores."""
    fidelities = run.config.fidelities
    top = max((fidelities.index(trial.fidelity) for trial in above), default=0)
    students: dict[str, TrialRecord] = {}
    scores: dict[str, np.ndarray] = {}
    for trial in run.trials:
        if trial.state == "complete" and trial.fidelity in fidelities[: top + 1] and _is_sound(trial, run):
            key, rung = student_key(trial.arch, trial.tuned), fidelities.index(trial.fidelity)
            scores.setdefault(key, np.full((top + 1, len(run.objectives)), np.nan))[rung] = _values([trial], run)[0]
            if key not in students or students[key].fidelity.amount < trial.fidelity.amount:
                students[key] = trial
    table = np.stack([scores[key] for key in students]) if students else np.empty((0, top + 1, len(run.objectives)))
    forecast = lifted(table)
    hopeful = []
    for place, trial in enumerate(students.values()):
        if trial.fidelity == fidelities[top]:
            continue
        others = np.delete(forecast, place, axis=0)
        best = forecast[place] - _spread(table, fidelities.index(trial.fidelity))
        beaten = np.all(others <= best, axis=1) & np.any(others < best, axis=1)
        if not beaten.any():
            hopeful.append(place)
    everyone = list(students.values())
    return [everyone[place] for place in hopeful], forecast[hopeful].reshape(-1, len(run.objectives))


def _spread(table: np.ndarray, rung: int) -> np.ndarray:
    """Return how uncertain [M] a score predicted from `rung` is, of `table` [N, R, M]; infinite of too few."""
    changes = [table[:, above] - table[:, above - 1] for above in range(rung + 1, table.shape[1])]
    known = [change[~np.isnan(change).any(axis=1)] for change in changes]
    if any(len(change) < _FEWEST_CHANGES for change in known):
        return np.full(table.shape[2], np.inf)
    return np.sqrt(sum(change.var(axis=0) for change in known))


def _is_sound(trial: TrialRecord, run: RunRecord) -> bool:
    values = measured_values(trial)
    known = all(math.isfinite(values.get(objective.name, math.nan)) for objective in run.objectives)
    return known and not breaches(values, run.limits)


def _values(trials: list[TrialRecord], run: RunRecord) -> np.ndarray:
    return minimised([measured_values(trial) for trial in trials], run.objectives)


def _scaled(values: np.ndarray, run: RunRecord) -> np.ndarray:
    """Return `values` [N, M] with the logarithm of every cost above 0, and of what a score lacks of the greatest one.

    A student that halves another's errors counts alike at 60 and at 96 per cent: on a linear scale one hardly better
    than chance that is cheaper takes the place of a good one.
    """
    costs = np.array([objective.direction == "minimize" for objective in run.objectives])
    scaled = logarithmic(values, costs & above_zero(values))
    for column, objective in enumerate(run.objectives):
        if objective.kind == "trained" and objective.direction == "maximize" and objective.is_bounded:
            lacking = objective.range[1] + values[:, column]
            scaled[:, column] = np.log(np.maximum(lacking, 0.0) + objective.point / 2)
    return scaled


def _reference(front: np.ndarray, run: RunRecord) -> np.ndarray:
    """Return the point [M] that gains are measured from: the score that is worth nothing, and past the front's costs.

    The run's own reference cost is a bound or a sampled price, which the most accurate student may well have: below it
    that one would add nothing.
    """
    chance = _scaled(minimised([run.reference_point], run.objectives), run)[0]
    if not len(front):
        return chance
    worst = front.max(axis=0)
    span = worst - front.min(axis=0)
    past = worst + _BEYOND * np.where(span > 0, span, 1.0)
    is_cost = np.array([objective.kind != "trained" for objective in run.objectives])
    return np.where(is_cost, past, chance)
