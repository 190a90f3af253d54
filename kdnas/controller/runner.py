"""The loop: ask, gate, evaluate, tell; then the front is earned by retraining.

One controller asks and tells; workers only evaluate. Whatever stops the controller, the record holds every trial that
ended; on the next start those that were running are closed as interrupted and run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from optuna.samplers import BaseSampler

from kdnas.controller.events import Note, Observer, SearchEnded, StudyEnded, TrialEnded, TrialStarted
from kdnas.controller.preparation import Opened
from kdnas.controller.promotion import kept_checkpoints, next_promotion, rung_of, student_key
from kdnas.controller.proposals import Preset, ValidProposals
from kdnas.controller.queue import queued_values
from kdnas.controller.retraining import Retraining
from kdnas.controller.stopping import full_trainings, is_ending, spent_by, why_over
from kdnas.controller.waiting import work_off
from kdnas.controller.workers import start_executor
from kdnas.core.arch import Arch, Scalar
from kdnas.core.objective import Constraint, breaches
from kdnas.core.seeds import derive_seed
from kdnas.core.words import counted
from kdnas.errors import ConfigError, RunFolderError
from kdnas.executors import Executor, Finished
from kdnas.faults import reach
from kdnas.record.records import Result, RunRecord, TrialRecord
from kdnas.record.storage import distributions
from kdnas.samplers import SAMPLERS, Ladder, SamplerContext
from kdnas.study.feasibility import relative_excess
from kdnas.study.tuning import Tuning
from kdnas.workshop.jobs import RUNG_FOLDER, Job, continues, search_job

_CANDIDATES_KEPT = 50_000


@dataclass(frozen=True)
class _Start:
    """What a free worker is to do next: a student given by `params`, or one that the sampler proposes, at a rung.

    `waiting` is the number of the queued trial that it is for, `again` that of the interrupted one that is run again.
    """

    rung: int = 0
    params: Mapping[str, Scalar] | None = None
    waiting: int | None = None
    again: int | None = None
    sampler: ValidProposals | None = None
    """Who proposes, where it has looked at the history already."""


class _Candidate(NamedTuple):
    """A student that a sampler considers: its identity (`student_key`), and its cheap costs."""

    student: str
    price: Mapping[str, float]


class Search:
    """One study being run by this controller."""

    def __init__(self, opened: Opened, observe: Observer):
        self._opened = opened
        self._observe = observe
        self._config = opened.config
        self._evaluator = opened.evaluator
        self._record = opened.record
        self._domain = distributions(opened.space, opened.config.tune)
        self._tuning = Tuning(opened.config)
        self._run = opened.run
        """As it stood when a trial began or ended last."""
        self._seen: set[str] = set()
        self._retry: deque[_Start] = deque()
        self._running: dict[int, Job] = {}
        self._candidates: dict[tuple[tuple[str, Scalar], ...], _Candidate] = {}
        self._proposed_in: dict[int, float] = {}
        """Seconds that each running trial's proposal took."""
        self._over = ""
        """Why the search ends here, as far as it is known."""
        self._seconds_before = 0.0
        self._began: float | None = None
        """When this call began to search; None while it does not."""
        self._new_trials = 0
        self._noted: set[str] = set()
        """Notes of trials that the observer has been given."""
        self._retraining = Retraining(opened, observe)
        self._recover()

    @property
    def did_nothing(self) -> bool:
        """Whether everything was done before this call."""
        return self._new_trials == 0 and not self._retraining.did_something

    def run(self) -> RunRecord:
        """Search, earn the front, measure it; return the run. KeyboardInterrupt closes what runs and propagates."""
        executor: Executor[Job, Result] | None = None

        def crew() -> Executor[Job, Result]:
            """Return the workers, started where none are yet."""
            nonlocal executor
            executor = executor or start_executor(self._opened, self._observe)
            return executor

        try:
            if self._next() is not None:
                self._search(crew())
            elif not self._run.finished:
                self._end()
            if waiting := self._record.waiting():
                self._observe(Note(f"{counted(len(waiting), 'queued trial')} left waiting for a larger budget"))
            chosen = self._retraining.measured_finalists(crew)
            if chosen and self._retraining.length_is_open:
                self._retraining.find_length(crew(), chosen)
            self._retraining.settle_length()
            pending = self._retraining.pending(chosen)
            run = self._opened.snapshot()
            self._observe(SearchEnded(run, run.finished, len(chosen), len(pending)))
            if pending:
                self._retraining.run(crew(), pending, chosen)
            for student, direct in self._retraining.uncontrolled():
                self._retraining.control(crew(), student, direct)
        except BaseException as error:
            with contextlib.suppress(RunFolderError):  # `error` reports a record that cannot be written
                self._drop(f"interrupted: {error}" if str(error) else f"interrupted: {type(error).__name__}")
            raise
        finally:
            if executor is not None:
                executor.close()
        self._retraining.finish()
        run = self._opened.snapshot()
        self._observe(StudyEnded(run, self._new_trials, self._retraining.new_repeats))
        return run

    # -- searching ------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Close what a dead controller left running, and learn what is scored."""
        for number in self._record.unfinished():
            self._record.close_without_result(number, "interrupted", "the controller stopped while it ran")
        self._run = self._opened.snapshot()
        self._seconds_before = self._record.notes().search_seconds
        lost: dict[tuple[str, int], int] = {}
        scored = set()
        for trial in self._run.trials:
            place = student_key(trial.arch, trial.tuned), rung_of(self._run, trial)
            if trial.state == "interrupted":
                lost[place] = trial.number
            else:
                scored.add(place)
        self._seen = {student for student, _ in scored}
        waiting = {queued.number for queued in self._record.waiting()}
        for other in (other for other in self._run.others if other.number not in waiting):
            self._observe(Note(f"trial {other.number}: {other.reason}"))
        self._retry.extend(
            _Start(rung, self._record.proposal(number), again=number)
            for (student, rung), number in lost.items()
            if (student, rung) not in scored
        )

    def _next(self) -> _Start | None:
        """Return what a free worker is to do; None when there is nothing within the budget, or nothing yet."""
        start = self._wanted()
        self._over = self._record.notes().exhausted if start is None else self._why_over(start)
        return None if self._over else start

    def _wanted(self) -> _Start | None:
        """Whom the user queued goes first, then what was interrupted, who deserves a longer training, a new student."""
        if queued := self._queued():
            return queued
        if self._retry:
            return self._retry[0]
        exhausted = bool(self._record.notes().exhausted)
        ending = self._is_ending()
        sampler = self._proposals({}) if self._config.rungs and self._config.promotion_rule == "model" else None
        if sampler is not None and sampler.chooses_steps:
            ladder = self._ladder(exhausted, ending)
            step = self._record.consulted(lambda study: sampler.next_step(study, ladder))
            if step is not None and step.promoted is not None:
                return self._further(next(trial for trial in self._run.trials if trial.number == step.promoted))
            if not exhausted and (step is not None or not ending):
                return _Start(0 if step is None else step.rung, sampler=sampler)
            promoted = None
        else:
            promoted = None if ending else next_promotion(self._run)
        if promoted is None and (exhausted or ending):
            top = self._config.fidelities[-1]
            if any(job.fidelity != top for job in self._running.values()):
                return None  # who is being scored may deserve it more than those that wait
            promoted = next_promotion(self._run, "gain") or next_promotion(self._run, "all")
        if promoted is not None:
            return self._further(promoted)
        return None if exhausted else _Start(sampler=sampler)

    def _further(self, promoted: TrialRecord) -> _Start:
        """Return the longer training of a student."""
        return _Start(rung_of(self._run, promoted) + 1, self._record.proposal(promoted.number))

    def _ladder(self, exhausted: bool, ending: bool) -> Ladder:
        """Return what may be done next: in the end nobody begins at the lowest rung, of a spent space nobody at all."""
        top = len(self._config.fidelities) - 1
        passes = self._evaluator.continues and continues(self._config, top)
        barred = exhausted or passes or bool(self._why_over(_Start(top)))
        return Ladder(
            costs=tuple(self._cost(rung) for rung in range(top + 1)),
            direct=math.inf if barred else self._cost(top),
            etas=tuple(self._config.eta(rung) for rung in range(top)),
            is_open=not (exhausted or ending),
        )

    def _queued(self) -> _Start | None:
        """Return the first of the queue that can be trained; those before it that cannot are closed, and reported."""
        for queued in self._record.waiting():
            number = queued.number
            try:
                values = queued_values(queued.stated, self._opened.space, self._domain)
            except ConfigError as error:
                self._set_aside(number, "; ".join(map(str, error.problems)))
                continue
            whole = values if values.keys() == self._domain.keys() else None
            if reason := "" if whole is None else self._refusal(whole):
                self._set_aside(number, reason)
                continue
            return _Start(0, whole, number)
        return None

    def _refusal(self, params: Mapping[str, Scalar]) -> str:
        """Return why the student of `params` is not worth a training, empty where it is."""
        candidate = self._candidate(params)
        if candidate.student in self._seen:
            known = [t.number for t in self._run.trials if student_key(t.arch, t.tuned) == candidate.student]
            return f"it is the student of trial {known[0]}" if known else "its student is being trained"
        broken = breaches(candidate.price, self._config.limits, known_only=True)
        return f"it breaks {', '.join(broken)}" if broken else ""

    def _set_aside(self, number: int, reason: str) -> None:
        self._record.set_aside(number, f"queued, and left out: {reason}")
        self._observe(Note(f"trial {number} was queued, and is left out: {reason}"))

    def _is_ending(self) -> bool:
        """Whether the rest of the budget is for students that are there."""
        if not self._config.rungs:
            return False
        climb = sum(self._cost(rung) for rung in range(len(self._config.fidelities)))
        return is_ending(self._run, spent_by(self._run, self._evaluator.continues, self._seconds), climb)

    def _cost(self, rung: int) -> float:
        """Return what a trial at `rung` costs, in full trainings."""
        return full_trainings(self._config, self._config.fidelities[rung], self._evaluator.continues)

    def _why_over(self, start: _Start) -> str:
        spent = spent_by(self._run, self._evaluator.continues, self._seconds)
        return why_over(self._run, spent, self._cost(start.rung))

    @property
    def _seconds(self) -> float:
        """Seconds of searching, over all calls."""
        return self._seconds_before + (0.0 if self._began is None else time.monotonic() - self._began)

    def _search(self, executor: Executor[Job, Result]) -> None:
        if self._record.notes().finished:
            self._record.set_note("finished", "")  # a larger budget goes on
            self._run = self._opened.snapshot()
        self._began = time.monotonic()
        work_off(executor, lambda: self._begin_next(executor), self._record_result, self._observe)
        self._seconds_before, self._began = self._seconds, None
        self._end()

    def _end(self) -> None:
        self._record.set_note("finished", self._over)
        self._opened.files.clear(RUNG_FOLDER)

    def _begin_next(self, executor: Executor[Job, Result]) -> bool:
        """Begin what a free worker is to do; False where there is nothing."""
        start = self._next()
        if start is not None:
            self._begin(executor, start)
        return start is not None

    def _begin(self, executor: Executor[Job, Result], start: _Start) -> None:
        """Start one trial, unless the sampler has nothing left to propose."""
        if self._retry and start is self._retry[0]:
            self._retry.popleft()
        asked = self._record.at_once(lambda: self._ask(start))
        if asked is None:
            return
        number, job, tuned = asked
        self._seen.add(student_key(job.arch, tuned))
        if start.waiting is not None:  # who was interrupted and is queued too runs once
            queued = student_key(job.arch, tuned)
            self._retry = deque(
                other for other in self._retry if other.rung or self._candidate(other.params or {}).student != queued
            )
        self._running[number] = job
        running = TrialRecord(number, job.arch, "running", job.fidelity, tuned)
        self._run = dataclasses.replace(self._run, trials=(*self._run.trials, running))
        executor.submit(str(number), job)
        self._observe(TrialStarted(number, job.arch, job.fidelity))

    def _ask(self, start: _Start) -> tuple[int, Job, dict[str, Scalar]] | None:
        """Return the number of a new trial, its job and tuned settings; None where no student is left to propose."""
        fixed: Mapping[str, Scalar] = {}
        if start.params is not None:
            if lost := sorted(self._domain.keys() - start.params.keys()):
                what = f"a trial to be run again or trained on has lost its parameter {lost[0]!r}: restore the file"
                raise RunFolderError(f"{self._record.place}: {what}")
            sampler: BaseSampler = Preset(start.params, self._domain)
            fixed = start.params
        else:
            if start.waiting is not None:
                queued = next(queued for queued in self._record.waiting() if queued.number == start.waiting)
                fixed = queued_values(queued.stated, self._opened.space, self._domain)
            sampler = start.sampler or self._proposals(fixed)
        began = time.monotonic()
        number, params = self._record.ask(sampler, self._domain, start.waiting)
        if start.again is not None:
            self._record.repeat_marks(start.again, number)
        self._proposed_in[number] = time.monotonic() - began
        reach("asked")
        arch, tuned = self._read({**params, **fixed})
        if start.waiting is not None and isinstance(sampler, ValidProposals) and sampler.exhausted:
            self._set_aside(number, "no student with its values is new and meets the constraints")
            return None
        if start.params is None and start.waiting is None:
            exhausted = sampler.exhausted if isinstance(sampler, ValidProposals) else ""
            if student_key(arch, tuned) in self._seen:  # Optuna asks no sampler where every choice has one value
                exhausted = exhausted or "every student of the space has been scored"
            if exhausted:
                self._record.close_without_result(number, "interrupted", "no further student could be proposed")
                self._record.set_note("exhausted", exhausted)
                return None
        first = self._first_score(arch, tuned) is None  # a student may begin at the highest rung
        job = dataclasses.replace(search_job(self._config, arch, tuned, start.rung), measure=first)
        self._record.describe(number, arch, tuned, job.fidelity)
        return number, job, tuned

    def _proposals(self, fixed: Mapping[str, Scalar]) -> ValidProposals:
        """Return the study's sampler, made for the next trial and kept to students that are worth a training.

        Each has the values of `fixed`.
        """
        place = self._record.next_place  # a search that was stopped proposes what an undisturbed one does
        rungs = self._config.fidelities if self._config.rungs else ()
        context = SamplerContext(
            self._opened.space,
            self._opened.run.objectives,
            self._config.expected_trials,
            derive_seed(self._config.seed, "sampler", place) % 2**32,
            price=lambda params: self._candidate(params).price,
            acceptable=self._acceptable,
            reference_point=self._opened.run.reference_point,
            fidelities=rungs,
            tuned={name: self._domain[name] for name in self._config.tune},
            limits=self._config.limits,
            library=self._evaluator.library,
        )
        return ValidProposals(
            SAMPLERS.build(self._config.sampler.type, context, **self._config.sampler.options),
            self._domain,
            self._acceptable,
            seed=derive_seed(self._config.seed, "proposals", place),
            excess=lambda params: relative_excess(context.price({**params, **fixed}), self._config.limits),
            fidelities=rungs,
            fixed=fixed,
        )

    def _read(self, params: Mapping[str, Scalar]) -> tuple[Arch, dict[str, Scalar]]:
        assignment = {name: value for name, value in params.items() if name not in self._config.tune}
        return self._evaluator.arch(assignment), self._tuning.of(params)

    def _acceptable(self, params: Mapping[str, Scalar]) -> bool:
        """A student not yet seen that meets every cheap constraint."""
        candidate = self._candidate(params)
        if candidate.student in self._seen:
            return False
        return not breaches(candidate.price, self._config.limits, known_only=True)

    def _candidate(self, params: Mapping[str, Scalar]) -> _Candidate:
        """Return what `params` stand for. Every proposal looks at many students, at some again and again."""
        key = tuple(params.items())
        known = self._candidates.get(key)
        if known is None:
            arch, tuned = self._read(params)
            known = _Candidate(student_key(arch, tuned), self._evaluator.price(arch))
            if len(self._candidates) >= _CANDIDATES_KEPT:
                self._candidates.clear()
            self._candidates[key] = known
        return known

    def _record_result(self, finished: Finished[Result]) -> None:
        reach("result")
        number = int(finished.key)
        job, proposal = self._running.pop(number), self._proposed_in.pop(number)

        def write() -> RunRecord:
            if finished.result is None:
                self._record.close_without_result(number, "failed", finished.failure or "no reason was given")
            else:
                result = self._with_measurements(job, number, finished.result)
                result = dataclasses.replace(result, profile={"proposal": proposal, **result.profile})
                values = result.values
                self._record.set_constraints(
                    number, {str(b): b.violation(values[b.name]) for b in self._bounds(job) if b.name in values}
                )
                self._record.complete(number, result, self._opened.run.objectives)
            self._note_seconds()
            reach("recording")
            return self._opened.snapshot()

        self._run = self._record.at_once(write)
        reach("recorded")
        self._new_trials += 1
        if job.legs:
            self._sweep()
        ended = next(record for record in self._run.trials if record.number == number)
        self._observe(TrialEnded(self._run, ended))
        for note in ended.notes:  # reported once: the report counts the trials
            if note not in self._noted:
                self._noted.add(note)
                self._observe(Note(f"trial {number}: {note}"))

    def _bounds(self, job: Job) -> tuple[Constraint, ...]:
        """Return what a score of `job` is judged by: a goal for the full training only where it is one."""
        full = job.fidelity.amount >= self._config.final_fidelity.amount
        return self._config.bounds if full else self._config.limits

    def _with_measurements(self, job: Job, number: int, result: Result) -> Result:
        """Return `result` with what the student's first rung measured: at the others nothing is measured again."""
        if job.measure:
            return result
        student = next(trial for trial in self._run.trials if trial.number == number)
        first = self._first_score(student.arch, student.tuned)
        assert first is not None
        values = {name: float(taken.value) for name, taken in first.measurements.items()}
        return dataclasses.replace(result, values={**values, **result.values}, measurements=first.measurements)

    def _first_score(self, arch: Arch, tuned: Mapping[str, Scalar]) -> TrialRecord | None:
        """Return the first trial that scored a student; None where there is none."""
        same = (trial for trial in self._run.trials if trial.arch == arch and trial.tuned == tuned)
        return next((trial for trial in same if trial.state == "complete"), None)

    def _sweep(self) -> None:
        """Delete the checkpoints of students that will not be promoted any more."""
        kept, files = kept_checkpoints(self._run), self._opened.files
        for place in files.under(RUNG_FOLDER):
            if place.endswith(".safetensors") and place not in kept:
                files.forget(place)

    def _note_seconds(self) -> None:
        if self._config.budget.wall_clock_s is not None:
            self._record.set_note("search_seconds", self._seconds)

    def _drop(self, reason: str) -> None:
        for number in self._running:
            self._record.close_without_result(number, "interrupted", reason)
        self._running.clear()
        self._note_seconds()
