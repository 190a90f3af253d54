"""The schema of study.yaml. Reading a file (line numbers, overrides, cross checks) is `kdnas.study.loading`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

import pydantic
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WrapValidator,
    model_validator,
)

from kdnas.core.data import Data
from kdnas.core.fidelity import Fidelity, SearchStart, Start
from kdnas.core.objective import ACCURACY, OF_VALUES, SCORES, Constraint, Quantity, score_among
from kdnas.core.pairing import Pairing
from kdnas.core.pick import DEFAULT_PICK, Near, PickError, Standard, against, parse_bound, parse_pick
from kdnas.core.promotion import Rule
from kdnas.core.route import PROGRESSIVE, Route
from kdnas.datasets import kind_of
from kdnas.errors import ConfigError, Problem
from kdnas.plugins import is_plugin
from kdnas.registry import Member, Section, later
from kdnas.study.earlier import in_present_words
from kdnas.study.tune import Tuned, range_or_values
from kdnas.training.recipe import RESERVED, Distillation, Recipe, Training, training_as
from kdnas.training.supernet import SupernetSettings, once_of_images

DISTIL = "distil"
"""The evaluator that trains students here."""
BLOCKS = "blocks"
"""The sampler that solves a library of the teacher's blocks."""
DERIVED = "derived"
"""The family of students cut out of the study's teacher, and what their space is called."""
_STEPS = ("optimizer", "learning_rate")
"""Training settings that are the family's for students cut out of their teacher, unless a study speaks of them: sgd's
usual 0.1 undoes in an epoch what they inherit."""
_UNKNOWN_TRIALS = 100
"""What a search is planned for whose budget is a time alone."""
_FREE_ETA = 8.0
"""One of so many students is promoted from a rung that costs no training, unless the study states another share."""


class DataConfig(Member):
    """The data set, and how much of its training split is carved off to score students on."""

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2

    @property
    def states_validation(self) -> bool:
        """Whether a validation split is named, so that nothing is carved off."""
        return self.options.get("validation") is not None

    @property
    def unused(self) -> str:
        """What is stated and decides nothing, in words; empty where all of it does."""
        idle = self.states_validation and "validation_fraction" in self.model_fields_set
        return "validation_fraction is not used: scores are made on what `validation` names" if idle else ""


class PairedData(Member):
    """Another data set for a teacher: given to it sample for sample in the place of the study's own, or learnt from."""

    pair: Pairing | Literal["none"]
    """order: the samples at the same places, key: those of the same key (`keys` of the data set), whose labels have to
    agree; label: one of the same class, drawn; none: a teacher that is trained here learns from them, and is asked
    about the study's own."""


class TeacherConfig(Member):
    """A teacher: where it comes from, the samples that it is given, and what it answers of them."""

    data: PairedData | None = later(None)
    """None: the study's own."""
    task: str | None = later(None)
    """The one of several tasks that it is a specialist of, as the data call it; None: it answers all that they ask."""


class SamplerConfig(Member):
    """Who proposes students. `nni:TPE` is short for NNI's tuner of that name: `{type: nni, tuner: TPE}`."""

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        """Return the section that a bare name, or a `type` such as `nni:TPE`, is short for."""
        section = super().spelled_out(value)
        kind = section.get("type") if isinstance(section, dict) else None
        if not isinstance(kind, str) or not kind.startswith("nni:"):
            return section
        return {"tuner": kind.removeprefix("nni:"), **section, "type": "nni"}


class Rung(Section):
    """One fidelity of a search that trains every student briefly and the promising ones longer."""

    start: SearchStart | None = None
    """Where its students' weights come from; None: as in the study."""
    epochs: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """0: a student is scored as it is cut out, as it is where this is left out. Required of random weights."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """None: as in `training`."""
    resolution_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Of the samples' size: an image's height and width, a text's tokens. None: as in `training`."""


class SupernetConfig(SupernetSettings):
    """The supernet of a search whose evaluators share weights: trained once a run, by `training` and `distillation`.

    It learns at the data's own resolution, whatever `training.resolution_fraction` is, and at `resolutions`.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Its budget: the work of so many epochs of the largest student."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """None: as in `training`."""
    inherit_teacher: bool | None = None
    """Begin from the teacher's weights, which takes one of the students' family; None: where that is so."""
    score_samples: Annotated[int | None, Field(ge=2, validation_alias=once_of_images("score"))] = None
    """Validation samples that a score of shared weights is made on; None: all of them."""


class BlocksConfig(Section):
    """The block library of a search by the sampler `blocks`: every block of the teacher at every size, fitted once."""

    samples: Annotated[int, Field(ge=8, le=10_000_000)] = 512
    """Training samples that blocks are fitted to and measured on, a quarter of them held out."""
    epochs: Annotated[int, Field(ge=0, le=1000)] = 1
    """Passes over them that each block is trained for once it is fitted in closed form."""


class Promotion(Section):
    """Which students of a rung are trained on at the next one: see `kdnas.core.promotion`."""

    rule: Rule | Literal["model"] | None = None
    """model: that of the sampler `hvi`: it learns what a short score says of the full one, and new students begin at
    the highest rung where that is too little. None: model with that sampler, rank with one that has no model."""
    eta: Annotated[float, Field(gt=1.0, le=1000.0)] | None = None
    """One of so many students of a rung is promoted, by `model` one or more. None: as many times as the next rung is
    longer, so that every rung gets about the same share of the budget; 8 from a rung that costs no training."""


class Stagnation(Section):
    """When a search is not worth going on with."""

    trials: Annotated[int, Field(ge=2, le=1_000_000)]
    """So many trials of the highest fidelity in a row ..."""
    gain: Annotated[float, Field(ge=0.0, le=1.0)] = 0.005
    """... that made the hypervolume no larger than by this share of it."""


class Budget(Section):
    """When the search stops: at the first limit that is reached. 40 trials where none is given."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Scores of students, failed ones counted; each rung that a student reaches is one."""
    wall_clock_s: Annotated[float, Field(gt=0.0)] | None = None
    """Of searching and of training a supernet, over all calls; what runs then is still finished. Retraining the front
    is not counted."""
    full_trainings: Annotated[float, Field(gt=0.0)] | None = None
    """Epochs x data share x resolution share squared of all trials, and the epochs of a supernet's training, in units
    of one final training; no trial starts that would exceed it."""
    stagnation: Stagnation | None = None
    """None: the search goes on however little it gains."""
    trial_time_limit_s: Annotated[float, Field(gt=0.0)] = 3600.0
    """A trial that runs longer is stopped and recorded as failed. A retraining may run longer in proportion to its
    epochs and data."""

    @model_validator(mode="before")
    @classmethod
    def _some_limit(cls, value: Any) -> Any:
        limits = ("trials", "wall_clock_s", "full_trainings")
        if isinstance(value, dict) and all(value.get(name) is None for name in limits):
            return {**value, "trials": 40}
        return value


class ExecutorConfig(Member):
    """Who runs the evaluations."""

    type: str = "local"
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """None: one a core on a CPU, one a device on GPUs."""
    per_device: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    """Students that a worker trains at once on its device; auto: as many as pay, measured when the run starts."""


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise ValueError("must be letters, digits, '.', '_' and '-', a letter or digit first")
    return text


class Completions(Section):
    """A file of texts that a language model is to complete: their last words, one of several endings, or answers."""

    file: str
    """JSON lines, relative to the data root, or a member of an archive: `{"context", "target"}`, `{"context",
    "endings", "label"}`, `{"question", "answers"}`."""
    name: Annotated[str, AfterValidator(_name)]
    skip: Annotated[int, Field(ge=0)] = later(0)
    """Leave out so many of its items, the first ones: those that are searched by, say, where others are reported."""
    first: Annotated[int, Field(ge=1)] | None = None
    """Only so many of the items, the first ones that are left; None: all."""

    @property
    def quantity(self) -> Quantity:
        """The share of its items that is right."""
        return Quantity(self.name, "fraction", "maximize", "trained")

    @model_validator(mode="before")
    @classmethod
    def _named_by_the_file(cls, value: Any) -> Any:
        value = {"file": value} if isinstance(value, str) else value
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("file"), str):
            return {**value, "name": PurePosixPath(value["file"]).stem}
        return value


class Final(Section):
    """How the front is earned: its students retrained, several seeds, then the test split."""

    start: Start | None = None
    """Where their weights come from; None: as in the study, where that shares weights at random, and those of
    students cut out of their teacher inherited. nested: the largest are cut out of their teacher, every other one out
    of the nearest larger one that holds it, trained with the same seed."""
    route: Route = later("direct")
    """Directly, or with what is trained before each of them on a part of its budget, as `kdnas help training` says. A
    finalist with no assistant that the budget could train, or that no supernet holds, is trained directly."""
    distillation: Distillation | None = later(None)
    """What they learn of; None: what the search's students do. Brief scores may rank best by another loss than the one
    that trains best: `kdnas audit --loss`."""
    compare_direct: bool = later(False)
    """Train the picked student once directly too, on the same budget, where it takes another route."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    epochs: Annotated[int, Field(ge=1)] | None = None
    """None: as many as in the search. With `until: flat` the fewest."""
    until: Literal["epochs", "flat"] = "epochs"
    """flat: so many epochs that twice as many give the most promising student less than 1 point more, each length being
    tried with a whole learning-rate schedule, up to `max_epochs`. All trials of lengths cost twice the last."""
    max_epochs: Annotated[int, Field(ge=1)] = 200
    """Read with `until: flat`."""
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_students: Annotated[int, Field(ge=1, le=1000)] = 8
    """Of a larger front the best score and those that add most hypervolume, costs counted by their logarithm; a smaller
    one is filled with students of lower rungs that may belong to it."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 2
    """A retraining that failed so often is given up; raise it to have it tried again."""
    control: bool = True
    """Train the picked student once more without its teacher, by cross entropy, to measure what distillation adds."""
    completions: tuple[Completions, ...] = later(())
    """What retrained language models, and their teacher, are to complete, in addition to the test text."""

    @model_validator(mode="after")
    def _one_name_each(self) -> Final:
        names = [one.name for one in self.completions]
        if len(set(names)) < len(names):
            raise ValueError(f"completions have the same name: {', '.join(names)}; state `name`")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> Final:
        if self.route == "direct" and self.compare_direct:
            raise ValueError("compare_direct: the route is direct: there is nothing to compare")
        if self.route != "direct" and self.until == "flat":
            raise ValueError(f"until: flat finds the length of direct trainings, and the route is {self.route}")
        if self.route != "direct" and self.start == "nested":
            raise ValueError(f"start: nested students are cut out of larger ones, and the route is {self.route}")
        if self.route in PROGRESSIVE and self.start == "supernet":
            raise ValueError(f"start: the route {self.route} trains a supernet for each student: random, or inherited")
        return self

    @model_validator(mode="after")
    def _room_to_grow(self) -> Final:
        if self.until == "flat" and self.epochs is not None and self.epochs > self.max_epochs:
            raise ValueError(
                f"epochs, {self.epochs}, are the fewest of `until: flat`: max_epochs must be at least that"
            )
        return self


def _pick(text: str) -> str:
    try:
        parse_pick(text, ACCURACY)  # its spelling; what it means depends on the run's score
    except PickError as error:
        raise ValueError(f"{error} (allowed: {error.allowed})") from None
    return text


class ExportConfig(Section):
    """What is exported when the search ends; nothing when `formats` is empty."""

    pick: Annotated[str, AfterValidator(_pick)] = DEFAULT_PICK
    formats: tuple[str, ...] = ("safetensors", "student_json", "student_py", "train_yaml", "model_card")


def _teacher_name(text: str) -> str:
    if text in RESERVED:
        raise ValueError(f"must be another name: {text} is {RESERVED[text]}")
    return _name(text)


def _bound(text: str, info: ValidationInfo) -> str:
    parse_bound(text, score_among(info.data.get("objectives", ())))
    return text


def with_the_tasks_score(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain data of a study whose objectives have the score that `task: {type, score}` names.

    What does not fit stays as it is, and is refused (`_task_name`).
    """
    task, objectives = plain.get("task"), plain.get("objectives")
    if not isinstance(task, dict) or not isinstance(objectives, list | tuple | None) or task.keys() - {"type", "score"}:
        return dict(plain)
    score, stated = task.get("score"), [name for name in objectives or () if name in SCORES]
    if score not in (None, *SCORES) or (score is not None and stated not in ([], [score])):
        return dict(plain)
    others = [name for name in objectives or ("macs",) if name != score]
    study = {key: value for key, value in plain.items() if key != "task"}
    study |= {} if task.get("type") is None else {"task": task["type"]}
    if score is None or stated:
        return study
    return {**study, "objectives": [score, *others]}


def _task_name(task: Any) -> Any:
    """Return the name of a task. Raises ValueError where it is a section that `with_the_tasks_score` left."""
    if not isinstance(task, dict):
        return task
    unknown = sorted(map(str, task.keys() - {"type", "score"}))
    if unknown:
        raise ValueError(f"has no {', '.join(unknown)}: it is a name, or {{type: NAME, score: SCORE}}")
    if task.get("score") not in SCORES:
        raise ValueError(f"no score is called {task.get('score')!r}; there are {', '.join(SCORES)}")
    raise ValueError(f"states {task['score']} as the score, and `objectives` name another score")


def task_kind(task: str | None, data: Member | None) -> str:
    """Return the kind of work of a study that states this `task` and these `data`."""
    return task or (Data if data is None else kind_of(data.type)).poses


def trains_here(plain: Mapping[str, Any]) -> bool:
    """Whether the evaluator of a plain study is the one that trains students here."""
    evaluator = Member.spelled_out(plain.get("evaluator", DISTIL))
    return isinstance(evaluator, dict) and evaluator.get("type") == DISTIL


def task_named(plain: Mapping[str, Any]) -> str:
    """Return the kind of work of the plain data of a study or of a train.yaml, which need not be sound."""
    task, data = plain.get("task"), Member.spelled_out(plain.get("data"))
    named = data.get("type") if isinstance(data, dict) else None
    stated = task if isinstance(task, str) else None
    return task_kind(stated, Member(type=named) if isinstance(named, str) else None)


def of_the_task(value: Any, otherwise: pydantic.ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Return the section `training` with the augmentation of the task, which stands before it as its data do."""
    return training_as(task_kind(info.data.get("task"), info.data.get("data")), value, otherwise)


def _storage(text: str) -> str:
    """Return the URL of a PostgreSQL database. Raises ValueError where it is none, or holds a password."""
    try:
        url = urlsplit(text)
        password = bool(url.password) or "password" in parse_qs(url.query)
    except ValueError as error:
        raise ValueError(f"must be a URL: {error}") from None
    if url.scheme != "postgresql" or (not url.path.strip("/") and "service" not in parse_qs(url.query)):
        raise ValueError("must be the URL of a PostgreSQL database: postgresql://user@host:5432/database")
    if password:
        raise ValueError("must hold no password: PGPASSWORD, ~/.pgpass or a service file holds it")
    return text


def _store(text: str) -> str:
    """Return the URL of a store. Raises ValueError where it is none, or holds a secret."""
    try:
        url = urlsplit(text)
        secret = url.username is not None or url.password is not None or bool(url.query)
    except ValueError as error:
        raise ValueError(f"must be a URL: {error}") from None
    if not url.scheme or "://" not in text or "::" in text or not (url.netloc + url.path).strip("/"):
        raise ValueError("must be a URL that fsspec opens: s3://bucket/folder, gs://bucket/folder, file:///folder")
    if secret:
        raise ValueError("must hold no user, password or query: these come from the environment (AWS_PROFILE, ...)")
    if url.scheme == "memory":
        raise ValueError("must be a place that several processes share; memory: is one process's own")
    return text


class DerivedSpace(pydantic.BaseModel):
    """Students cut out of the study's own teacher: how, are the options of the family `derived`, next to `derive`."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    derive: str = ""
    """Which teacher: there is one, `teacher`."""


class StudyConfig(Section):
    """One study, every default resolved."""

    name: Annotated[str, AfterValidator(_name)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    evaluator: Member = Member(type=DISTIL)
    """Where a student's score comes from."""
    start: SearchStart = "random"
    """Where the weights come from that `distil` trains: drawn, inherited from the teacher, or cut from a supernet. The
    default of students cut out of their teacher is inherited."""
    task: Annotated[str | None, BeforeValidator(_task_name)] = None
    """The kind of work, where it is not the one that the data pose by themselves: a task of your own. `task: {score:
    f1}` has the students scored by another quantity than the task's usual one, as an objective of that name does."""
    data: DataConfig | None = None
    teacher: TeacherConfig | None = None
    """Data and teacher are required by the evaluators that train."""
    teacher_name: Annotated[str, AfterValidator(_teacher_name)] = "teacher"
    """What it is called: `teachers: {NAME: ...}` states both."""
    further_teachers: dict[Annotated[str, AfterValidator(_teacher_name)], TeacherConfig] = Field(default_factory=dict)
    """Those after the first of `teachers: {NAME: ..., NAME: ...}`. Costs and scores are compared with
    those of the first, and students are cut out of it; a loss names by `of` the one whose outputs it learns."""
    space: str | DerivedSpace
    """The name of a space that kdnas carries, a path to a YAML file relative to the study, or `derive: teacher`."""
    objectives: Annotated[tuple[str, ...], Field(min_length=2, max_length=4)] = ("accuracy", "macs")
    constraints: tuple[Annotated[str, AfterValidator(_bound)], ...] = ()
    """Bounds on costs (`macs<=10M`, `macs<=5%` of the teacher's), which no student of the run breaks, and goals for the
    score (`accuracy>=0.9`, `teacher-1`), which the retrained students are to reach."""
    costs: dict[str, dict[str, Any]] = Field(default={"latency_ms": {}})
    """Options of costs, by name: `latency_ms: {threads: 1, batch_size: 1}`; a cost of your own is given its `type`."""
    training: Annotated[Training, WrapValidator(of_the_task)] = Field(default_factory=Training, validate_default=True)
    distillation: Distillation = Distillation()
    supernet: SupernetConfig | None = None
    """Read where a start is `supernet`; None is then the default of every setting."""
    blocks: BlocksConfig | None = None
    """Read where the sampler is `blocks`; None is then the default of every setting."""
    rungs: tuple[Rung, ...] = ()
    """Fidelities of the search, lowest first; the last one is its full score, `training.epochs`. None: only that."""
    promotion: Promotion = Promotion()
    trackers: tuple[Member, ...] = ()
    """Where the progress of the search goes in addition to the screen."""
    tune: dict[str, Annotated[Tuned, WrapValidator(range_or_values)]] = Field(default_factory=dict)
    """Dotted recipe settings that are searched too: `training.learning_rate: {low: 0.01, high: 0.3, log: true}` or a
    list of values, among them the losses: `distillation.losses: [kd, hint+kd, {type: dist, task_weight: 1}]`."""
    sampler: SamplerConfig = SamplerConfig(type="auto")
    executor: ExecutorConfig = ExecutorConfig()
    storage: Annotated[str, AfterValidator(_storage)] | None = None
    """Where the trials are kept: a PostgreSQL database that many studies share, each by its name; None: the run folder.
    """
    store: Annotated[str, AfterValidator(_store)] | None = None
    """Where machines that share no disk have checkpoints, caches and code from: a URL of fsspec's; None: they share the
    run folder and the cache."""
    budget: Budget = Budget()
    final: Final = Final()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="before")
    @classmethod
    def _training_of_the_last_rung(cls, value: Any) -> Any:
        """Give `training` the last rung's settings, where it does not state them itself."""
        if not isinstance(value, dict):
            return value
        value = in_present_words(value)
        rungs, training = value.get("rungs"), value.get("training", {})
        last = rungs[-1] if isinstance(rungs, (list, tuple)) and rungs else None
        if not isinstance(last, dict) or not isinstance(training, dict) or not last.get("epochs"):
            return value
        names = ("epochs", "data_fraction", "resolution_fraction")
        last_stated = {name: last[name] for name in names if last.get(name) is not None}
        return {**value, "training": {**last_stated, **training}}

    @model_validator(mode="before")
    @classmethod
    def _losses_of_values(cls, value: Any) -> Any:
        """Let students that predict numbers learn from the teacher's numbers, where no losses are stated."""
        if not isinstance(value, dict):
            return value
        value = with_the_tasks_score(value)
        names, distillation = value.get("objectives", ()), value.get("distillation", {})
        known = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        if not known or score_among(names) not in OF_VALUES or not isinstance(distillation, dict):
            return value
        return {**value, "distillation": {"losses": [{"type": "mse", "weight": 0.9}], **distillation}}

    @model_validator(mode="before")
    @classmethod
    def _labels_without_losses(cls, value: Any) -> Any:
        """Let labels count in full where there is neither a teacher nor a loss, and no weight is stated."""
        if not isinstance(value, dict) or value.get("teacher") is not None:
            return value
        distillation = value.get("distillation")
        if not isinstance(distillation, dict) or "task_weight" in distillation:
            return value
        terms = distillation.get("losses")
        if not isinstance(terms, list) or any(not isinstance(term, dict) or term.get("weight") != 0 for term in terms):
            return value
        return {**value, "distillation": {**distillation, "task_weight": 1.0}}

    @model_validator(mode="before")
    @classmethod
    def _start_of_what_is_cut(cls, value: Any) -> Any:
        """Let students that are cut out of their teacher begin with its weights, where no other start is stated.

        What is inherited is then trained with small steps, unless the study speaks of steps itself.
        """
        if not isinstance(value, dict) or not isinstance(value.get("space"), dict):
            return value
        if "start" not in value:
            if not trains_here(value):
                return value
            value = {**value, "start": "inherited"}
        training, tuned = value.get("training", {}), value.get("tune", {})
        known = isinstance(training, dict) and isinstance(tuned, dict)
        if value["start"] != "inherited" or not known or any(f"training.{name}" in tuned for name in _STEPS):
            return value
        if training.keys() & {*_STEPS}:
            return value
        from kdnas.students import STUDENTS  # here, because it brings torch

        family = STUDENTS.get(DERIVED)
        return {**value, "training": {**training, **{name: getattr(family, name) for name in _STEPS}}}

    @model_validator(mode="after")
    def _known_unit(self) -> StudyConfig:
        if self.final.until == "flat" and self.budget.full_trainings is not None:
            raise ValueError(
                "final.until: flat finds the length of a final training last, and budget.full_trainings counts in it"
            )
        return self

    @model_validator(mode="after")
    def _some_blocks(self) -> StudyConfig:
        if self.sampler.type == BLOCKS and self.blocks is None:
            object.__setattr__(self, "blocks", BlocksConfig())
        return self

    @model_validator(mode="after")
    def _some_supernet(self) -> StudyConfig:
        if self.shares_weights and self.supernet is None:
            object.__setattr__(self, "supernet", SupernetConfig())
        if self.shares_weights and self.distillation.on_policy is not None:
            raise ValueError("distillation.on_policy: the subnets of a supernet learn from the data's texts alone")
        return self

    def cost(self, name: str) -> Member:
        """Return the cost of this name with its options: the registry's, or the one whose type the study states."""
        return Member.model_validate({"type": name, **self.costs.get(name, {})})

    @property
    def training_data(self) -> DataConfig:
        """The section `data`. Raises ConfigError where the study trains nothing itself."""
        if self.data is None:
            what = f"{self.evaluator.called} trains no students here: there are no weights and no data"
            raise ConfigError(Problem("evaluator", what))
        return self.data

    @property
    def teachers(self) -> dict[str, TeacherConfig]:
        """The teachers by name, the first one first; none where no loss learns of one, or nothing is trained here."""
        return {} if self.teacher is None else {self.teacher_name: self.teacher, **self.further_teachers}

    @property
    def score(self) -> Quantity:
        """What students are scored by."""
        return score_among(self.objectives)

    @property
    def completed(self) -> tuple[Completions, ...]:
        """What every student of the search completes: the completions that are objectives."""
        return tuple(one for one in self.final.completions if one.name in self.objectives)

    @property
    def _stated_bounds(self) -> list[Constraint | Near]:
        return [parse_bound(text, self.score) for text in self.constraints]

    @property
    def bounds(self) -> tuple[Constraint, ...]:
        """The constraints that are numbers: all of them once those that speak of the teacher are `against` it."""
        stated = self._stated_bounds
        return tuple(bound for bound in stated if isinstance(bound, Constraint) and not bound.percent)

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """The bounds on costs, as far as they are numbers: what is known of a student without training it."""
        return tuple(bound for bound in self.bounds if not bound.is_goal_for(self.score))

    @property
    def bounded(self) -> tuple[str, ...]:
        """The quantities that constraints are about."""
        return tuple(dict.fromkeys(bound.name for bound in self._stated_bounds if isinstance(bound, Constraint)))

    @property
    def needs_teacher_numbers(self) -> bool:
        """Whether a constraint speaks of the teacher."""
        return len(self.bounds) < len(self.constraints)

    def against(self, teacher: Standard | None) -> StudyConfig:
        """Return the study with the teacher's numbers in the constraints that speak of it.

        Raises ConfigError where one of them is not known.
        """
        if not self.needs_teacher_numbers:
            return self
        numbers, problems = [], []
        for index, stated in enumerate(self._stated_bounds):
            try:
                bound = against(stated, teacher, self.score)
                numbers.append(f"{bound.name}{bound.operator}{bound.bound!r}")
            except PickError as error:
                problems.append(Problem(f"constraints.{index}", str(error), error.allowed))
        if problems:
            raise ConfigError(problems)
        return self.model_copy(update={"constraints": tuple(numbers)})

    @property
    def starts(self) -> frozenset[Start]:
        """Where the weights come from of any student that is scored or retrained."""
        return frozenset(fidelity.start for fidelity in (*self.fidelities, self.final_fidelity))

    @property
    def shares_weights(self) -> bool:
        """Whether the study needs a supernet."""
        return "supernet" in self.starts

    @property
    def fidelities(self) -> tuple[Fidelity, ...]:
        """The fidelities of the search's scores, lowest first: one where there are no rungs."""
        full = replace(self.training.fidelity, start=self.start)
        return tuple(self._fidelity(rung, full) for rung in self.rungs) or (full,)

    @staticmethod
    def _fidelity(rung: Rung, full: Fidelity) -> Fidelity:
        stated = replace(full, **rung.model_dump(exclude_none=True))
        as_cut = not rung.epochs and stated.start != "random"
        return Fidelity(0, start=stated.start) if as_cut else stated

    @property
    def promotion_rule(self) -> Rule | Literal["model"]:
        """The rule of promotion, the default one resolved."""
        return self.promotion.rule or ("model" if self.has_model else "rank")

    @property
    def has_model(self) -> bool:
        """Whether the sampler may have a model of what short scores say."""
        return self.sampler.type in ("auto", "hvi") or is_plugin(self.sampler.type)

    def eta(self, rung: int) -> float:
        """Return one of how many students of `rung` is promoted to the next."""
        below, above = (fidelity.amount for fidelity in self.fidelities[rung : rung + 2])
        return self.promotion.eta or (above / below if below else _FREE_ETA)

    def time_limit_s(self, fidelity: Fidelity) -> float:
        """Return after how many seconds a training of `fidelity` is stopped: in proportion to that of a trial."""
        return self.budget.trial_time_limit_s * max(fidelity.amount / self.training.fidelity.amount, 1.0)

    @property
    def expected_trials(self) -> int:
        """How many trials the budget is good for, estimated where it is not stated: what samplers plan with."""
        if self.budget.trials is not None:
            return self.budget.trials
        if self.budget.full_trainings is None:
            return _UNKNOWN_TRIALS
        first = self.budget.full_trainings / len(self.fidelities)
        paid = next((fidelity for fidelity in self.fidelities if fidelity.amount), None)
        if paid is None:
            return _UNKNOWN_TRIALS
        students = first * self.final_fidelity.amount / paid.amount
        return max(round(students if paid == self.fidelities[0] else students * self.eta(0)), 1)

    def with_final_epochs(self, epochs: int) -> StudyConfig:
        """Return the study with so many epochs of a final training, found out by the run."""
        return self.model_copy(update={"final": self.final.model_copy(update={"epochs": epochs})})

    @property
    def final_fidelity(self) -> Fidelity:
        """How much training each retraining of a finalist gets, at the full resolution."""
        alone: Start = "inherited" if isinstance(self.space, DerivedSpace) else "random"
        start = self.final.start or (alone if self.start == "supernet" else self.start)
        epochs = self.final.epochs or self.training.epochs
        return Fidelity(epochs, self.final.data_fraction, start, route=self.final.route)

    @property
    def recipe(self) -> Recipe:
        """The recipe of a search trial."""
        return Recipe(training=self.training, distillation=self.distillation)
