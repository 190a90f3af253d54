"""train.yaml: one student's training, whole. Written by exports, followed by `kdnas train` or any other pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import (
    Field,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from kdnas.core.arch import Arch
from kdnas.core.data import Data
from kdnas.core.task import TaskSpec
from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES
from kdnas.nn.teacher import further_of
from kdnas.plugins import is_plugin, resolved
from kdnas.record.front import beside
from kdnas.record.lock import fingerprint, of_todays_task, space_record
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.registry import Registry, Section, later, validation_problems
from kdnas.students import stated_arch
from kdnas.study.config import DataConfig, TeacherConfig
from kdnas.study.members import TRAINED_HERE, option_problems
from kdnas.study.tuning import final_recipe
from kdnas.study.yaml_lines import YamlDocument, read_yaml
from kdnas.tasks import TASKS, task_of
from kdnas.teachers import TEACHERS
from kdnas.training.loss import needs_by_teacher
from kdnas.training.numerics import settled
from kdnas.training.recipe import FRONT, NUMERICS, Distillation, Recipe, Training, for_task, numerics_of, training_as
from kdnas.trust import vouch_for_signed
from kdnas.version import __version__

ONLY_TEACHER = "teacher"
"""What the one teacher is called that has no name."""
FORMAT_VERSION: Literal[2] = 2
"""Version 1 had images and one teacher alone: `input_shape`, `channel_mean`, `channel_std`, `teacher`."""


class ArchSection(Section):
    """The network: its family and choices."""

    family: str
    choices: dict[str, bool | int | float | str]


class Preparation(Section):
    """What is done to a picture before the student gets it (`kdnas.core.preprocessing`), for other pipelines."""

    orientation: Literal["upright"] = "upright"
    background: str = "white"
    resize: Literal["bilinear"] = "bilinear"
    aspect: Literal["stretched"] = "stretched"
    from_pictures: bool = True
    """False: the training images came as arrays, and how those were resized is not known."""
    channel_mean: tuple[float, ...] | None = later(None)
    """What the student itself subtracts, where that is its teacher's and not that of the data; None: the file's."""
    channel_std: tuple[Annotated[float, Field(gt=0.0)], ...] | None = later(None)
    """By what it divides."""


class Provenance(Section):
    """Where the recipe comes from."""

    study: str = ""
    trial: int | None = None
    kdnas_version: str = ""


def _of_the_task(value: Any, otherwise: pydantic.ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    task = info.data.get("task")
    return otherwise(value) if task is None else training_as(task.kind, value, otherwise)


class TrainFile(Section):
    """Everything that decides one training. Two equal files give the same student on the same machine."""

    format_version: Literal[2]
    name: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """The study's seed: it draws the validation split, the first weights, the order of images and their views."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    arch_id: str
    arch: ArchSection
    family_options: dict[str, Any] = Field(default_factory=dict)
    """How the family is built, where it has options: what students are cut out of their teacher by."""
    task: TaskSpec
    """What the student is given and what it answers; its `kind` is the task's name."""
    statistics: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """The statistics of the training samples that the task's entrance needs, by name."""
    class_names: tuple[str, ...] = ()
    """In the order of the outputs; empty where these have no names."""
    data: DataConfig
    data_fingerprint: str
    """Hash of the data's content."""
    teachers: dict[str, TeacherConfig] = Field(default_factory=dict)
    """By name; a loss names by `of` the one whose outputs it learns. None: no loss learns of a teacher."""
    teacher_fingerprint: str = ""
    """Hash of the first teacher's weights; empty: not checked."""
    teacher_answers: tuple[float, ...] = ()
    """A sketch of the teacher's outputs for a few fixed samples, compared up to rounding; empty: not checked."""
    further_fingerprints: dict[str, str] = later({})
    """Hashes of the teachers after the first, by name."""
    training: Annotated[Training, WrapValidator(_of_the_task)]
    distillation: Distillation
    start: Literal["random", "inherited"] = "random"
    """What the student begins from: random weights, or those that it has when it is cut out of its teacher."""
    preprocessing: Preparation | None = None
    """Of pictures, as the data set reads them; kdnas itself goes by `data`."""
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _whole(self) -> TrainFile:
        if self.class_names and len(self.class_names) != self.task.outputs:
            raise ValueError(f"class_names are {len(self.class_names)}, and task.outputs is {self.task.outputs}")
        if self.task.kind in TASKS.names() or is_plugin(self.task.kind):
            task_of(self.task).check_statistics(self.statistics)
        return self

    @field_validator("training")
    @classmethod
    def _whole_samples(cls, training: Training) -> Training:
        if training.resolution_fraction != 1.0:
            raise ValueError("a full training is at the full resolution: resolution_fraction has to be 1")
        return training

    @model_validator(mode="after")
    def _stated_peers(self) -> TrainFile:
        if self.distillation.peers == FRONT:
            raise ValueError("distillation.peers: one student has no front; state how many, or their choices")
        return self

    @model_validator(mode="after")
    def _known_teachers(self) -> TrainFile:
        if unknown := [name for name in self.further_fingerprints if name not in self.teachers]:
            raise ValueError(f"further_fingerprints names {', '.join(unknown)}, which is none of the teachers")
        return self

    @property
    def student(self) -> Arch:
        """The arch, canonical."""
        return stated_arch(self.arch.family, self.arch.choices)

    @property
    def recipe(self) -> Recipe:
        """What `distil` follows."""
        return Recipe(training=self.training, distillation=self.distillation)

    @property
    def preparation(self) -> Preparation:
        """How the data set of `data` reads pictures; where it reads arrays, how pictures may be read for it."""
        options = DATASETS.options(self.data.type).model_fields
        if "background" not in options:
            return Preparation(from_pictures=False)
        return Preparation(background=self.data.options.get("background", options["background"].default))

    def with_preprocessing(self, own: Mapping[str, tuple[float, ...]]) -> TrainFile:
        """Return the file with its settings for pictures, where samples are pictures, written out.

        `own` is the student's normalisation where that is its teacher's: `channel_mean` and `channel_std`.
        """
        if self.task.inputs[0].kind != "pixels":
            return self
        return self.model_copy(update={"preprocessing": self.preparation.model_copy(update=dict(own))})

    def settled(self, device: torch.device, locked: Mapping[str, Any]) -> TrainFile:
        """Return the file with its numerics decided: as the plain `locked` training has them, else by what is here."""
        return self.model_copy(update={"training": settled(numerics_of(self.training, locked), device)})

    def plain(self) -> dict[str, Any]:
        """Return the file's content as plain data, in the order of this class."""
        return self.model_dump(mode="json")


def train_file_for(run: RunRecord, trial: TrialRecord, data: Data) -> TrainFile:
    """Return the full training of `trial`'s student: the recipe of the run's finalists with the trial's tuned settings.

    Raises ConfigError when a tuned setting does not fit the recipe.
    """
    config = run.config
    data_config = run.training_data
    recipe = final_recipe(config, trial.tuned, beside(trial.arch, run.retrained))
    return TrainFile(
        format_version=FORMAT_VERSION,
        name=f"{config.name}-{trial.arch.arch_id}",
        seed=config.seed,
        device=config.device,
        arch_id=trial.arch.arch_id,
        arch=ArchSection(family=trial.arch.family, choices=trial.arch.choices),
        family_options=dict(run.lock.space.options),
        task=data.task,
        statistics=dict(data.statistics),
        class_names=data.class_names,
        data=data_config,
        data_fingerprint=data.fingerprint,
        teachers=dict(config.teachers),
        teacher_fingerprint=locked_fingerprint(run, "teacher"),
        teacher_answers=run.lock.teacher_answers,
        further_fingerprints=further_of(run.lock.fingerprints),
        training=recipe.training,
        distillation=recipe.distillation,
        start="inherited" if config.final_fidelity.start in ("inherited", "nested") else "random",
        provenance=Provenance(study=config.name, trial=trial.number, kdnas_version=__version__),
    )


def with_epochs(file: TrainFile, epochs: int) -> TrainFile:
    """Return `file` with a training of `epochs` epochs."""
    return file.model_copy(update={"training": file.training.model_copy(update={"epochs": epochs})})


def with_threads(file: TrainFile, threads: int | None) -> TrainFile:
    """Return `file` with a training of the student by so many CPU threads; None: as it is.

    A teacher that is trained here stays the one that the file was written for.
    """
    if threads is None:
        return file
    teachers = {name: _computed_as(teacher, file.training) for name, teacher in file.teachers.items()}
    training = file.training.model_copy(update={"threads": threads})
    return file.model_copy(update={"training": training, "teachers": teachers})


def _computed_as(teacher: TeacherConfig, students: Training) -> TeacherConfig:
    """Return the teacher with the numerics of the `students` stated, by which it is trained where it states none."""
    if teacher.type not in TRAINED_HERE:
        return teacher
    stated = teacher.options.get("training") or {}
    numerics = {name: getattr(students, name) for name in NUMERICS if stated.get(name, "auto") == "auto"}
    training = {**stated, **numerics}
    return TeacherConfig.model_validate(teacher.model_dump() | {"training": training})


def locked_fingerprint(run: RunRecord, what: Literal["data", "teacher", "space"]) -> str:
    """Return the hash that study.lock.yaml records of `what`; empty where it records none."""
    return fingerprint(space_record(run.lock.space)) if what == "space" else run.lock.fingerprints.get(what, "")


def load_train_file(path: Path) -> TrainFile:
    """Return the train.yaml at `path`. Raises ConfigError with everything that is wrong with it, and where."""
    document = read_yaml(path)
    vouch_for_signed(path, path.read_text(encoding="utf-8"), document.data)
    document = replace(document, data=in_present_form(resolved(document.data, path.parent)))
    try:
        file = TrainFile.model_validate(document.data)
    except pydantic.ValidationError as error:
        task = document.data.get("task")
        schema = for_task(TrainFile, str(task.get("kind")) if isinstance(task, dict) else "")
        raise ConfigError(_placed(document, validation_problems(error, schema))) from None
    problems = [*_arch_problems(file), *_member_problems(file)]
    if problems:
        raise ConfigError(_placed(document, problems))
    return file


def in_present_form(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain content of a train.yaml of any version as it is written now; what is damaged stays as it is."""
    today = of_todays_task(plain)
    if "teacher" in plain and "teachers" not in plain:
        today["teachers"] = {ONLY_TEACHER: today.pop("teacher")}
    if plain.get("format_version") == 1:
        today["format_version"] = FORMAT_VERSION
    return today


def _placed(document: YamlDocument, problems: list[Problem]) -> list[Problem]:
    return [
        Problem(f"{document.name}:{document.line_of(problem.where)}: {problem.where}", problem.what, problem.allowed)
        for problem in problems
    ]


def _arch_problems(file: TrainFile) -> list[Problem]:
    try:
        arch = file.student
    except ConfigError as error:
        return [
            Problem(f"arch.choices.{p.where}" if p.where else "arch.family", p.what, p.allowed) for p in error.problems
        ]
    if arch.arch_id != file.arch_id:
        return [Problem("arch_id", f"is {file.arch_id}, but the arch below it is {arch.arch_id}: one was edited")]
    return []


def _member_problems(file: TrainFile) -> list[Problem]:
    named: list[tuple[str, Registry[Any], str, Mapping[str, Any]]] = [
        ("data", DATASETS, file.data.type, file.data.options),
        *((f"teachers.{name}", TEACHERS, teacher.type, teacher.options) for name, teacher in file.teachers.items()),
        *(
            (f"teachers.{name}.data", DATASETS, teacher.data.type, teacher.data.options)
            for name, teacher in file.teachers.items()
            if teacher.data is not None
        ),
    ]
    for index, term in enumerate(file.distillation.losses):
        named.append((f"distillation.losses.{index}", LOSSES, term.type, term.options))
    problems = [
        problem
        for where, registry, name, options in named
        for problem in option_problems(registry, where, name, options)
    ]
    if not problems:
        try:
            needs_by_teacher(file.distillation, file.teachers)
        except ConfigError as error:
            problems += error.problems
    return problems
