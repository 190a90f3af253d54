"""What a run leaves behind, as frozen records. Everything shown or exported is derived from these.

`kdnas.record.storage` reads and writes them; reports, the command line and exporters only read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from kdnas.core.arch import Arch, Scalar
from kdnas.core.fidelity import Fidelity
from kdnas.core.measurement import Measurement
from kdnas.core.objective import Constraint, Quantity
from kdnas.core.pick import Standard
from kdnas.core.route import Route
from kdnas.core.words import printable
from kdnas.errors import ConfigError, Problem
from kdnas.record.lock import Lock, SupernetRecord, TeacherReport
from kdnas.study.config import DataConfig, StudyConfig

Mean = tuple[float, float | None]
"""The mean over retrainings, and half the width of Student's 95 % interval, None of one."""
TrialState = Literal["complete", "failed", "infeasible", "interrupted", "running"]


@dataclass(frozen=True)
class Result:
    """What came of a job. A job that failed has none: whoever runs it raises TrialError with the reason."""

    values: Mapping[str, float]
    """Every quantity known of the student, by name; no score where it is `infeasible`."""
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    """The measured quantities with their spread."""
    train_seconds: float = 0.0
    teacher_seconds: float = 0.0
    """Share of train_seconds spent on the teacher."""
    profile: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase; those that are known."""
    infeasible: str = ""
    """Why a measured constraint ruled the student out before it was trained; empty where none did."""
    test: float | None = None
    """The score on the test split, where the job asked for it and there is one."""
    further: Mapping[str, float] = field(default_factory=dict)
    """Further results on the test split: other scores of its task, shares of texts completed."""
    checkpoint: str = ""
    """Where the weights are, relative to the run folder; empty where the job asked for none."""
    sha256: str = ""
    """Of the file of the weights."""
    curve: tuple[tuple[int, float], ...] = ()
    """(epoch, validation score) at the epochs that the job asked to look at, the last included."""
    notes: tuple[str, ...] = ()
    """What slowed the training, in words."""
    went: str = ""
    """The route by which it was trained, `direct`, where the one that the job asked for could not be taken."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form, for JSON: what is empty is left out."""
        plain = {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, "", (), {})}
        always = ("measurements", "train_seconds", "teacher_seconds")
        return {**{name: getattr(self, name) for name in always}, **plain, "values": dict(self.values)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Result:
        """Return the result that a plain form holds; what is left out is empty."""
        known = {known.name: plain[known.name] for known in dataclasses.fields(cls) if known.name in plain}
        measurements = {name: Measurement(**taken) for name, taken in plain.get("measurements", {}).items()}
        notes = tuple(map(printable, plain.get("notes", ())))
        curve = tuple((epoch, score) for epoch, score in plain.get("curve", ()))
        return cls(**{"values": {}, **known, "measurements": measurements, "notes": notes, "curve": curve})


@dataclass(frozen=True)
class Repeat:
    """A finalist trained anew: `score` on the validation split, `test_score` on the test split.

    Where the evaluator trains nothing itself, there is no checkpoint and perhaps no test score.
    """

    seed: int
    score: float
    test_score: float | None
    fidelity: Fidelity
    train_seconds: float
    checkpoint: str
    """File name under the run folder's checkpoints/."""
    sha256: str = ""
    """Of that file; empty where there is none, or where an earlier version did not write it down."""
    further: Mapping[str, float] = field(default_factory=dict)
    """What else is known of how good it is on the test split, by name."""
    cut_from: int | None = None
    """The trial whose retraining with the same seed it was cut out of; None: no student."""
    by_task: Mapping[str, float] = field(default_factory=dict)
    """On the validation split, the score of each of several tasks by its name."""
    direct: bool = False
    """Whether it was trained directly, for the route of its fidelity could not be taken."""

    @property
    def route(self) -> Route:
        """The route by which it was trained."""
        return "direct" if self.direct else self.fidelity.route


@dataclass(frozen=True)
class Control:
    """The student of a trial trained once more for comparison, as its first retraining: by cross entropy alone.

    `direct`: by its teacher, where the retrainings take another route.
    """

    number: int
    score: float | None
    """None where the training failed, for `failure`."""
    test_score: float | None
    fidelity: Fidelity
    train_seconds: float = 0.0
    failure: str = ""
    direct: bool = False


@dataclass(frozen=True)
class OtherTrial:
    """A trial of the record that is no student of the search: `reason` is what it is, or why it was left out."""

    number: int
    reason: str


@dataclass(frozen=True)
class QueuedTrial:
    """A trial that waits in the queue, for what whoever queued it has `stated`: values by choice, not checked yet."""

    number: int
    stated: Mapping[str, object]


@dataclass(frozen=True)
class FailedRepeat:
    """A retraining of a finalist that failed so often, the last time for `reason`."""

    number: int
    seed: int
    attempts: int
    reason: str


@dataclass(frozen=True)
class RunNotes:
    """Facts of a whole run, written while it goes on."""

    finished: str = ""
    """Why the search ended, empty while it has not."""
    exhausted: str = ""
    """Why no further student can be proposed, empty where one may."""
    packing: str = ""
    """How many students each device trained at once and by what measurement, empty where nothing was measured."""
    search_seconds: float = 0.0
    """Of searching, over all calls; 0 where the budget does not ask."""
    lengths: Mapping[int, float] = field(default_factory=dict)
    """By epochs of a final training that were tried: the score."""
    final_epochs: int | None = None
    """What was settled by them."""
    teacher_tested: bool = False
    teacher_test_score: float | None = None
    """On the test split; None where there is none, or no teacher."""
    teacher_further: Mapping[str, float] = field(default_factory=dict)
    """What else is known of how good the teacher is there, by name."""


@dataclass(frozen=True)
class TrialRecord:
    """One proposed student and what became of it."""

    number: int
    arch: Arch
    state: TrialState
    fidelity: Fidelity
    tuned: Mapping[str, Scalar] = field(default_factory=dict)
    """Training settings searched with the architecture, by dotted name."""
    proposed: Mapping[str, Scalar] = field(default_factory=dict)
    """What the sampler proposed for every choice, those included that are not active in the arch."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Every quantity known of it, objectives and others: accuracy, macs, params, latency_ms, ..."""
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    """The measured quantities with their spread."""
    enqueued: bool = False
    """Whether somebody queued it, instead of the sampler proposing it."""
    reason: str = ""
    """Why it failed, was infeasible or was interrupted."""
    train_seconds: float = 0.0
    teacher_seconds: float = 0.0
    """Share of train_seconds spent on the teacher."""
    profile: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase: student, teacher, data, evaluation, build, proposal; those that are known."""
    notes: tuple[str, ...] = ()
    """What slowed its training, in words."""
    started: datetime | None = None
    ended: datetime | None = None
    repeats: tuple[Repeat, ...] = ()
    """Final retrainings, when it was a finalist."""


@dataclass(frozen=True)
class AuditTraining:
    """One training of an audit: a longer one, or a brief one under another loss than the study's."""

    number: int
    """The student's trial."""
    seed: int
    score: float
    """On the validation split."""
    fidelity: Fidelity
    loss: str = ""
    """What the student learned from, in words; empty for the study's own loss."""
    train_seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    """(epoch, score) at some epochs on the way, where they were looked at."""


@dataclass(frozen=True)
class AuditRecord:
    """What the last audit of a run asked for, and every training that any audit of it has made."""

    students: tuple[int, ...]
    """Trial numbers of the sample."""
    fidelity: Fidelity
    """Of the longer trainings."""
    seeds: int
    trainings: tuple[AuditTraining, ...] = ()


@dataclass(frozen=True)
class FrontMember:
    """A student of the final front. The score in `values` is the mean over its repeats where it was retrained."""

    trial: TrialRecord
    values: Mapping[str, float]
    score_ci95: float | None
    """Half width of Student's t interval over the repeats."""
    test_score: float | None = None
    test_score_ci95: float | None = None
    further: Mapping[str, Mean] = field(default_factory=dict)
    """What else is known of how good it is on the test split, by name."""


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read whole."""

    folder: Path
    config: StudyConfig
    lock: Lock
    objectives: tuple[Quantity, ...]
    constraints: tuple[Constraint, ...]
    quantities: Mapping[str, Quantity]
    """Every quantity that values may hold, by name, the score first."""
    trials: tuple[TrialRecord, ...]
    teacher: TeacherReport | None
    reference_point: Mapping[str, float]
    """By objective name, in the objective's own unit and direction; every hypervolume of the run uses it."""
    class_names: tuple[str, ...]
    finished: str = ""
    """Why the search ended, empty while it has not."""
    packing: str = ""
    """How many students each device trained at once and by what measurement, empty where nothing was measured."""
    others: tuple[OtherTrial, ...] = ()
    """Trials that wait, that other tools added, or that were left out."""
    failed_repeats: tuple[FailedRepeat, ...] = ()
    """Retrainings to the final fidelity that failed."""
    controls: tuple[Control, ...] = ()
    """Students trained without their teacher, to the final fidelity."""
    audit: AuditRecord | None = None
    """None where no audit was made."""
    teacher_further: Mapping[str, float] = field(default_factory=dict)
    """What is known of how good the teacher is on the test split in addition to its score, by name."""
    worked_out: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What functions of the whole record have found (`once`): it does not change, and many ask."""

    @property
    def score(self) -> Quantity:
        """What its students are scored by."""
        return next(iter(self.quantities.values()))

    @property
    def scores_by_task(self) -> tuple[Quantity, ...]:
        """What each of several tasks is scored by; none where there is one task."""
        task = self.lock.data.task
        return () if task is None else task.scores[1:]

    @property
    def lead(self) -> int:
        """The place among the objectives of the score, or of the first task's where that is none of them."""
        trained = [place for place, objective in enumerate(self.objectives) if objective.kind == "trained"]
        return self.objectives.index(self.score) if self.score in self.objectives else trained[0]

    @property
    def samples(self) -> str:
        """What its task calls samples, in the plural."""
        return self.lock.data.samples

    @property
    def worst(self) -> float | None:
        """The score that is worth nothing, such as that of guessing; None where it is not known."""
        return self.reference_point.get(self.score.name)

    @property
    def retrained(self) -> tuple[TrialRecord, ...]:
        """The finalists, as far as they have been retrained."""
        return tuple(trial for trial in self.trials if trial.repeats)

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """The constraints on costs: what breaks one is no student of the run."""
        return tuple(bound for bound in self.constraints if not bound.is_goal_for(self.score))

    @property
    def goals(self) -> tuple[Constraint, ...]:
        """The constraints on the score, which retrained students are to reach: a brief one is no measure of them."""
        return tuple(bound for bound in self.constraints if bound.is_goal_for(self.score))

    @property
    def standard(self) -> Standard | None:
        """The teacher, as bounds may speak of it; None where there is none."""
        return None if self.teacher is None else self.teacher.standard(self.score)

    @property
    def teachers(self) -> dict[str, TeacherReport]:
        """All teachers by name, the first one first."""
        first = {} if self.teacher is None else {self.config.teacher_name: self.teacher}
        return {**first, **self.lock.further_teachers}

    @property
    def trains(self) -> bool:
        """Whether kdnas itself trained the students: a function of the user's may have, whatever data a study names."""
        return self.config.data is not None and self.lock.data.training_samples is not None

    @property
    def training_data(self) -> DataConfig:
        """The section `data`. Raises ConfigError where kdnas itself trained nothing."""
        if not self.trains:
            what = f"{self.config.evaluator.called} trains no students here: there are no weights and no data"
            raise ConfigError(Problem("evaluator", what))
        return self.config.training_data

    @property
    def data_notes(self) -> tuple[str, ...]:
        """What the user should know of the data: what was converted, left out, occurs twice, or is scarce."""
        return self.lock.data.notes

    @property
    def supernet(self) -> SupernetRecord | None:
        """The run's supernet; None where it has none, or none yet."""
        return self.lock.supernet
