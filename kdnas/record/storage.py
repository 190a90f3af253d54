"""The record of a run: Optuna's storage, and what kdnas keeps in it.

A trial's parameters are the proposed assignment. Beside them stand, as user attributes: `arch_id`, `arch`, `fidelity`,
`tuned` from the start; `result` (values, measurements, seconds), `reason` and `interrupted` at the end. A trial without
`fidelity` is no student: one that was queued and waits, that another tool added, or that was left out, for the reason
in `set_aside`. Retrainings of
finalists are study attributes `final:<trial>:<seed>`, since Optuna does not let a finished trial change. So are the
trainings of an audit, `audit:<trial>:<seed>:<epochs>x<data fraction>:<loss>`, and what it asked for, `audit`; and how
often a retraining failed, `failed:<trial>:<seed>:<epochs>x<data fraction>`; and trainings without a teacher,
`control:<trial>:<epochs>x<data fraction>`.

In a search with rungs a student has one trial at each rung that it reached; the first is the one that was proposed.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy.exc import SQLAlchemyError

from kdnas.core.arch import Arch, Scalar
from kdnas.core.fidelity import Fidelity, Start, alone
from kdnas.core.measurement import Measurement
from kdnas.core.objective import Quantity
from kdnas.core.space import SearchSpace
from kdnas.core.words import printable
from kdnas.errors import RunFolderError
from kdnas.record.damage import leave_out
from kdnas.record.database import Database, database_of, database_of_run
from kdnas.record.lock import Lock, read_lock
from kdnas.record.records import (
    AuditRecord,
    AuditTraining,
    Control,
    FailedRepeat,
    OtherTrial,
    QueuedTrial,
    Repeat,
    Result,
    RunNotes,
    RunRecord,
    TrialRecord,
)
from kdnas.record.rows import Rows, queueing
from kdnas.record.run_folder import LOCK_FILE, controller_lock
from kdnas.record.trials import (
    FIXED_PARAMS,
    audit_training,
    control_of,
    measurements_of,
    repeat_of,
    trial_record,
    what_else,
    with_retraining,
)
from kdnas.study.config import StudyConfig
from kdnas.study.tune import Tuned, TuneRange

optuna.logging.set_verbosity(optuna.logging.ERROR)

P = ParamSpec("P")
R = TypeVar("R")

_REFUSALS = (SQLAlchemyError, optuna.exceptions.StorageInternalError, optuna.exceptions.UpdateFinishedTrialError)
"""What the disk or the database raises."""
_TRIES = 3
"""Of one write whose server is lost; each waits for it to come back."""
_NOTES_OF_OLD = {"teacher_test_accuracy": "teacher_test_score"}


def distributions(space: SearchSpace, tune: Mapping[str, Tuned]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of every choice and tuned setting: evenly spaced integers keep their order."""
    result: dict[str, BaseDistribution] = {}
    for choice in space.choices:
        if choice.step is not None:
            result[choice.name] = IntDistribution(choice.values[0], choice.values[-1], step=choice.step)  # type: ignore[arg-type]
        else:
            result[choice.name] = CategoricalDistribution(choice.values)
    for name, asked in tune.items():
        if isinstance(asked, TuneRange):
            result[name] = FloatDistribution(asked.low, asked.high, log=asked.log)
        else:
            result[name] = CategoricalDistribution(asked)
    return result


def _on_disk(method: Callable[Concatenate[Record, P], R]) -> Callable[Concatenate[Record, P], R]:
    """Have `method` raise what the disk or the database refuses as a RunFolderError that names the file."""

    @functools.wraps(method)
    def guarded(self: Record, /, *arguments: P.args, **options: P.kwargs) -> R:
        return self._lasting(lambda: method(self, *arguments, **options))

    return guarded


class Record:
    """One run's trials, on disk. Only the controller writes; readers may open it at any time.

    Every method that reads or writes raises RunFolderError when the disk is full or read-only, or when another program
    keeps the database locked for more than a minute.
    """

    def __init__(self, database: Database, rows: Rows):
        self._database = database
        self._name = database.study
        self._rows = rows
        self.study = optuna.Study(self._name, rows, optuna.samplers.RandomSampler(seed=0))
        self._asked: dict[int, optuna.Trial] = {}
        """By number: the trials that this process runs."""
        self._ended: dict[int, TrialRecord] = {}
        """By number: trials that change no more, but for the results of finalists."""

    @classmethod
    def create(cls, database: Database, objectives: Sequence[Quantity]) -> Record:
        """Create the record in `database`, whole or not at all. Raises RunFolderError where that cannot hold it."""
        database.create([objective.direction for objective in objectives])
        record = cls.open(database, objectives)
        record.name_axes(objectives)
        return record

    @classmethod
    def open(cls, database: Database, objectives: Sequence[Quantity]) -> Record:
        """Open the record in `database`. Raises RunFolderError when it is damaged, foreign or of another study."""
        rows = database.open([objective.name for objective in objectives])
        with database.errors():
            record = cls(database, rows)
            record.study.get_trials(deepcopy=False)  # read once, so that a truncated file is reported here
        directions = [direction.name.lower() for direction in record.study.directions]
        expected = [objective.direction for objective in objectives]
        if directions != expected:
            raise RunFolderError(f"{database.place} records objectives {directions}, the study has {expected}")
        return record

    @property
    def place(self) -> str:
        """Where it is, as messages call it."""
        return self._database.place

    @property
    @_on_disk
    def next_place(self) -> int:
        """The number the next trial would get had nothing been interrupted: what was is run again, in its own place."""
        return sum(not trial.user_attrs.get("interrupted") for trial in self.study.get_trials(deepcopy=False))

    @_on_disk
    def name_axes(self, objectives: Sequence[Quantity]) -> None:
        """Name the objectives for Optuna's own tools, where that was not done: records of old do not have it."""
        if self.study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names([objective.name for objective in objectives])

    def at_once(self, write: Callable[[], R]) -> R:
        """Return what `write` does, and write all of it in one transaction: whole or not at all, one wait for the disk.

        Nothing is written where another controller has taken the study over. `write` is called again where a server was
        lost meanwhile that has come back.
        """

        def whole() -> R:
            self._database.check_held()
            try:
                with self._rows.at_once():
                    return write()
            except BaseException:
                self._ended.clear()  # what was read inside may never have been written
                raise

        return self._lasting(whole)

    def _lasting(self, work: Callable[[], R]) -> R:
        """Return what `work` does, done again where its server is lost meanwhile. Raises RunFolderError."""
        asked = dict(self._asked)
        for again in reversed(range(_TRIES)):
            try:
                return work()
            except _REFUSALS as error:
                if self._rows.is_writing:
                    raise  # the whole of it is done again
                if not again or not self._database.lost(error) or self._rows.may_be_written:
                    raise self._database.unusable(error) from error
                self._asked = dict(asked)
        raise AssertionError("the last try returns or raises")

    @_on_disk
    def ask(
        self,
        sampler: optuna.samplers.BaseSampler,
        domain: Mapping[str, BaseDistribution],
        waiting: int | None = None,
    ) -> tuple[int, dict[str, Scalar]]:
        """Return the number of a new running trial, and what `sampler` proposed for it.

        Where `waiting` is the number of a queued trial, it is that one, whose own values come first.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = queueing(self._name, self._rows, waiting, sampler).ask(dict(domain))
        self._asked[trial.number] = trial
        return trial.number, dict(trial.params)

    @_on_disk
    def consulted(self, question: Callable[[optuna.Study], R]) -> R:
        """Return the answer to a question about the study, which it leaves as it is."""
        return question(self.study)

    @_on_disk
    def repeat_marks(self, before: int, again: int) -> None:
        """Give trial `again` what samplers noted of `before`, the interrupted one that it stands for.

        Such as its generation: without, an evolution would go on without this student.
        """
        for name, value in self.study.get_trials(deepcopy=False)[before].system_attrs.items():
            if name != FIXED_PARAMS:
                self._rows.set_trial_system_attr(self._trial_id(again), name, value)

    @_on_disk
    def waiting(self) -> tuple[QueuedTrial, ...]:
        """Return the queued trials, first come first."""
        trials = self.study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))
        return tuple(
            QueuedTrial(trial.number, {**trial.params, **trial.system_attrs.get(FIXED_PARAMS, {})}) for trial in trials
        )

    @_on_disk
    def enqueue(self, values: Mapping[str, Scalar], where: str) -> None:
        """Let a student of `values` wait until the search takes it; `where` is its source."""
        self.study.enqueue_trial(dict(values), user_attrs={"enqueued": where})

    @_on_disk
    def set_aside(self, number: int, reason: str) -> None:
        """Close a trial that has not been described, with the reason why it becomes no student."""
        trial_id = self._trial_id(number)
        self._rows.set_trial_state_values(trial_id, OptunaState.RUNNING)  # a waiting one
        self._rows.set_trial_user_attr(trial_id, "set_aside", printable(reason))
        self._close(number, OptunaState.FAIL)

    @_on_disk
    def describe(self, number: int, arch: Arch, tuned: Mapping[str, Scalar], fidelity: Fidelity) -> None:
        """Write what a running trial is."""
        trial = self._asked[number]
        trial.set_user_attr("arch_id", arch.arch_id)
        trial.set_user_attr("arch", arch.canonical_json)
        trial.set_user_attr("tuned", dict(tuned))
        trial.set_user_attr("fidelity", fidelity.as_dict())

    @_on_disk
    def complete(self, number: int, result: Result, objectives: Sequence[Quantity]) -> None:
        """Close a running trial with its result: as infeasible where it is."""
        if result.infeasible:
            self._asked[number].set_user_attr("reason", printable(result.infeasible))
        self._asked[number].set_user_attr("result", result.as_dict())
        if result.infeasible:
            self._close(number, OptunaState.PRUNED)
        else:
            values = [float(result.values[objective.name]) for objective in objectives]
            self._close(number, OptunaState.COMPLETE, values)

    @_on_disk
    def close_without_result(self, number: int, state: Literal["failed", "interrupted"], reason: str) -> None:
        """Close a trial as failed or interrupted, with the reason."""
        trial_id = self._trial_id(number)
        self._rows.set_trial_user_attr(trial_id, "reason", printable(reason))
        if state == "interrupted":
            self._rows.set_trial_user_attr(trial_id, "interrupted", True)
        self._close(number, OptunaState.FAIL)

    def _close(self, number: int, state: OptunaState, values: Sequence[float] | None = None) -> None:
        self.study.tell(number, values, state=state)
        self._asked.pop(number, None)

    @_on_disk
    def set_constraints(self, number: int, violations: Mapping[str, float]) -> None:
        """Write how far a running trial violates each constraint (<= 0 is feasible), for samplers that read it."""
        for name, violation in violations.items():
            self._asked[number].set_constraint(name, violation)

    @_on_disk
    def add_repeat(self, number: int, repeat: Repeat) -> None:
        """Write one retraining of finalist `number`."""
        self.study.set_user_attr(f"final:{number}:{repeat.seed}", dataclasses.asdict(repeat))

    @_on_disk
    def add_control(self, control: Control) -> None:
        """Write that a student was trained without its teacher."""
        key = f"control:{control.number}:{control.fidelity.key}{':direct' if control.direct else ''}"
        self.study.set_user_attr(key, dataclasses.asdict(control))

    @_on_disk
    def controls(self, fidelity: Fidelity) -> tuple[Control, ...]:
        """Return the controls that were trained to `fidelity`."""
        found = [value for key, value in self._notes.items() if key.startswith("control:")]
        return tuple(control for control in map(control_of, found) if control.fidelity == fidelity)

    @_on_disk
    def add_failed_repeat(self, number: int, seed: int, fidelity: Fidelity, reason: str) -> None:
        """Write that a retraining of finalist `number` failed once more, and why."""
        attempts = self.failed_repeats(number, seed, fidelity) + 1
        failed = {"attempts": attempts, "reason": printable(reason)}
        self.study.set_user_attr(_failed_key(number, seed, fidelity), failed)

    @_on_disk
    def failed_repeats(self, number: int, seed: int, fidelity: Fidelity) -> int:
        """Return how often a retraining of finalist `number` failed."""
        return int(self._notes.get(_failed_key(number, seed, fidelity), {}).get("attempts", 0))

    @_on_disk
    def all_failed_repeats(self, fidelity: Fidelity) -> tuple[FailedRepeat, ...]:
        """Return the retrainings to `fidelity` that failed."""
        return tuple(
            FailedRepeat(int(number), int(seed), int(value["attempts"]), printable(value["reason"]))
            for key, value in self._notes.items()
            if key.startswith("failed:")
            for _, number, seed, amount in [key.split(":")]
            if amount == fidelity.key
        )

    @_on_disk
    def begin_audit(self, students: Sequence[int], fidelity: Fidelity, seeds: int) -> None:
        """Write what an audit asks for; it replaces what an earlier one did, whose trainings stay."""
        self.study.set_user_attr("audit", {"students": list(students), "fidelity": fidelity.as_dict(), "seeds": seeds})

    @_on_disk
    def add_audit_training(self, training: AuditTraining) -> None:
        """Write one training of an audit."""
        key = f"audit:{training.number}:{training.seed}:{training.fidelity.key}:{training.loss}"
        self.study.set_user_attr(key, dataclasses.asdict(training))

    @_on_disk
    def audit(self) -> AuditRecord | None:
        """Return the run's audit, None where none was begun."""
        attributes = self._notes
        plan = attributes.get("audit")
        if plan is None:
            return None
        known = {trial.number for trial in self.study.get_trials(deepcopy=False) if "fidelity" in trial.user_attrs}
        made = (audit_training(value) for key, value in attributes.items() if key.startswith("audit:"))
        trainings = tuple(training for training in made if training.number in known)
        students = tuple(number for number in plan["students"] if number in known)  # none that was left out since
        return AuditRecord(students, Fidelity.from_dict(plan["fidelity"]), plan["seeds"], trainings)

    @_on_disk
    def has_final_measurements(self, number: int) -> bool:
        """Whether finalist `number` was measured after the search."""
        return f"measured:{number}" in self._notes

    @_on_disk
    def add_final_measurements(self, number: int, measurements: Mapping[str, Measurement]) -> None:
        """Write what finalist `number` measures on the quiet machine; it replaces what its trial measured."""
        plain = {name: measurement.as_dict() for name, measurement in measurements.items()}
        self.study.set_user_attr(f"measured:{number}", plain)

    @_on_disk
    def set_note(self, name: str, value: str | float | Mapping[int, float] | Mapping[str, float] | None) -> None:
        """Write a fact about the whole run, such as why the search ended: one of `RunNotes`, by its name there."""
        self.study.set_user_attr(f"note:{name}", value)

    @_on_disk
    def notes(self) -> RunNotes:
        """Return the facts that `set_note` wrote."""
        attributes = self._notes
        noted = {key.partition(":")[2]: value for key, value in attributes.items() if key.startswith("note:")}
        noted = {_NOTES_OF_OLD.get(name, name): value for name, value in noted.items()}
        lengths = {int(epochs): score for epochs, score in noted.get("lengths", {}).items()}
        known = {one.name: noted[one.name] for one in dataclasses.fields(RunNotes) if one.name in noted}
        return RunNotes(**{**known, "lengths": lengths, "teacher_tested": "teacher_test_score" in noted})

    @_on_disk
    def proposal(self, number: int) -> dict[str, Scalar]:
        """Return what was proposed as trial `number`."""
        return dict(self.study.get_trials(deepcopy=False)[number].params)

    @_on_disk
    def trials(self) -> tuple[TrialRecord, ...]:
        """Return every trial that became a student, in order."""
        repeats: dict[int, list[Repeat]] = {}
        attributes = self._notes
        for key, value in attributes.items():
            if key.startswith("final:"):
                repeats.setdefault(int(key.split(":")[1]), []).append(repeat_of(value))
        return tuple(
            with_retraining(
                self._trial(trial),
                repeats.get(trial.number, []),
                measurements_of(attributes.get(f"measured:{trial.number}", {})),
            )
            for trial in self.study.get_trials(deepcopy=False)
            if "fidelity" in trial.user_attrs  # the last of what `describe` writes
        )

    @_on_disk
    def others(self) -> tuple[OtherTrial, ...]:
        """Return the trials that are no students, but for proposals that were withdrawn."""
        return tuple(
            OtherTrial(trial.number, reason)
            for trial in self.study.get_trials(deepcopy=False)
            if "fidelity" not in trial.user_attrs and (reason := what_else(trial))
        )

    def _trial(self, trial: FrozenTrial) -> TrialRecord:
        """Return a trial's own attributes, which are read once of each that has ended."""
        known = self._ended.get(trial.number)
        if known is None:
            known = trial_record(trial)
            if trial.state.is_finished():
                self._ended[trial.number] = known
        return known

    @_on_disk
    def unfinished(self) -> list[int]:
        """Return the numbers of trials that no controller is running any more."""
        return [trial.number for trial in self.study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))]

    def _trial_id(self, number: int) -> int:
        return self._rows.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    @property
    def _notes(self) -> Mapping[str, Any]:
        """What was noted of the study: Optuna's own property copies it deeply, time and again."""
        return self._rows.get_study_user_attrs(self.study._study_id)


def _with_start(audit: AuditRecord | None, start: Start) -> AuditRecord | None:
    """Return `audit` with the start that its longer trainings had: earlier versions recorded random weights for all."""
    if audit is None or audit.fidelity.start == start:
        return audit
    fidelity = dataclasses.replace(audit.fidelity, start=start)
    trainings = tuple(
        dataclasses.replace(training, fidelity=fidelity)
        if training.fidelity == audit.fidelity and not training.loss
        else training
        for training in audit.trainings
    )
    return dataclasses.replace(audit, fidelity=fidelity, trainings=trainings)


def _failed_key(number: int, seed: int, fidelity: Fidelity) -> str:
    return f"failed:{number}:{seed}:{fidelity.key}"


def refreshed(run: RunRecord, record: Record) -> RunRecord:
    """Return `run` with the trials and notes that `record` holds now.

    Retrainings of another fidelity than the run's final one are left out: `final` may change when a run resumes, and
    means over trainings of different lengths are not comparable.
    """
    notes = record.notes()
    if run.config.final.until == "flat" and notes.final_epochs is not None:
        run = dataclasses.replace(run, config=run.config.with_final_epochs(notes.final_epochs))
    wanted = run.config.final_fidelity
    trials = tuple(
        dataclasses.replace(trial, repeats=tuple(repeat for repeat in trial.repeats if repeat.fidelity == wanted))
        if trial.repeats
        else trial
        for trial in record.trials()
    )
    teacher = run.teacher
    if teacher is not None and notes.teacher_test_score is not None:
        teacher = dataclasses.replace(teacher, test_score=notes.teacher_test_score)
    return dataclasses.replace(
        run,
        trials=trials,
        teacher=teacher,
        controls=record.controls(wanted),
        # a start of the finalists' own may change when a run resumes, the study's may not
        audit=record.audit() if run.config.final.start else _with_start(record.audit(), alone(wanted.start)),
        others=record.others(),
        failed_repeats=record.all_failed_repeats(wanted),
        finished=notes.finished,
        packing=notes.packing,
        teacher_further=notes.teacher_further,
    )


def run_of_lock(folder: Path, lock: Lock) -> RunRecord:
    """Return the run that a lock file describes, without its trials. Raises RunFolderError when it is damaged."""
    config, teacher = lock.config, lock.teacher
    known = {quantity.name: quantity for quantity in lock.quantities}
    if lost := [name for name in config.objectives if name not in known]:
        raise RunFolderError(f"{folder / LOCK_FILE} is damaged: quantities: {', '.join(lost)} is not among them")
    return RunRecord(
        folder=folder,
        config=config,
        lock=lock,
        objectives=tuple(known[name] for name in config.objectives),
        constraints=config.against(None if teacher is None else teacher.standard(config.score)).bounds,
        quantities=known,
        trials=(),
        teacher=teacher,
        reference_point=lock.reference_point,
        class_names=lock.data.class_names,
    )


def load_run(folder: Path) -> RunRecord:
    """Return the run in `folder`. Raises RunFolderError when it is not one, or damaged."""
    if not folder.is_dir():
        raise RunFolderError(f"there is no run folder {folder}")
    run = run_of_lock(folder, read_lock(folder))
    return refreshed(run, record_of(run))


def record_of(run: RunRecord) -> Record:
    """Return the record of `run`, opened. Raises RunFolderError."""
    return Record.open(database_of_run(run), run.objectives)


@contextmanager
def run_held(folder: Path, config: StudyConfig) -> Iterator[Database]:
    """Hold the run in `folder`, made where there is none, and its record for one controller. Gives its database.

    Raises RunFolderError when another has either of them, or they cannot be used.
    """
    database = database_of(folder, config.name, config.storage)
    with controller_lock(folder), database.held():
        yield database


def proposed_names(run: RunRecord) -> set[str]:
    """Return the names of what every trial of `run` proposes: the choices of its space, and the tuned settings."""
    return {*(choice.name for choice in run.lock.space.choices), *run.config.tune}


def leave_out_damaged(folder: Path, names: Sequence[str]) -> list[str]:
    """Leave the damaged trials and notes in `names` out of the run in `folder`; return in words what was done.

    The caller holds the folder's controller lock. Raises RunFolderError, and ConfigError where one is not damaged.
    """
    run = run_of_lock(folder, read_lock(folder))
    objectives = [objective.name for objective in run.objectives]
    return leave_out(database_of_run(run), objectives, proposed_names(run), names)
