"""The schedule of one student's training as a file: steps that `kdnas train --schedule` or any other pipeline follows.

The recipe (data, views, losses, optimizer) is that of the student's train.yaml; a step says what is trained how long by
which teacher, and how it begins. What a supernet step did is recorded in it as `kdnas.training.schedule_file` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field

from kdnas.core.arch import Arch
from kdnas.core.route import Route
from kdnas.core.schedule import Ladders, Schedule
from kdnas.core.space import SearchSpace
from kdnas.core.task import TaskSpec
from kdnas.errors import ConfigError, Problem
from kdnas.plain_yaml import dump_yaml
from kdnas.plan.train_file import ArchSection
from kdnas.record.run_folder import recorded_space, write_text
from kdnas.registry import validation_problems
from kdnas.students import STUDENTS, StudentFamily
from kdnas.study.yaml_lines import YamlDocument, read_yaml
from kdnas.training.recipe import Fraction, Section
from kdnas.training.subnets import ElasticSpace
from kdnas.training.supernet_settings import SupernetSettings

FORMAT: Literal["kdnas training schedule 1"] = "kdnas training schedule 1"
TEACHER = "teacher"
RANDOM = "random"
RUN_SUPERNET = "run-supernet"

Count = Annotated[int, Field(ge=1)]


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,40}", text):
        raise ValueError("must be at most 41 of a-z, 0-9, '_' and '-', a letter or digit first")
    return text


Name = Annotated[str, AfterValidator(_name)]

_HEADER = """\
# How to train student {arch_id} of {study}: written by `kdnas schedule`, followed by `kdnas train --schedule`.
#
# The steps are done in order; the last one gives the student. Data, views, losses and optimizer are those of the
# student's train.yaml (`kdnas export --format train_yaml`), with the step's epochs and its factor of the learning rate.
#   distil    trains `arch` for `epochs`. It learns from `teacher`: the study's, or the network of an earlier step. It
#             begins from `init`: random weights, those of the earlier step of that name, which is the same network, or
#             its weights cut out of the `supernet` that the search trained (run-supernet).
#   supernet  trains all networks of `space` at once; every list begins with the value of the largest network and ends
#             with the student's. `settings` decide which values may be sampled when; what was decided is in `recorded`,
#             and a schedule that has it is followed to the letter. Then the smallest network is cut out and its
#             batch-norm statistics are estimated anew.
# The budget, the same for every route, is epochs x images x 3 x student_macs: 3 x MACs for each image that a network is
# trained on, and 1 x for each one that the supernet's policy measures on. Teachers' forward passes are not counted.
"""


class StudentSection(ArchSection):
    """The student that the schedule ends with."""

    arch_id: str


class TeacherSection(Section):
    """The study's teacher, whose forward passes the budget does not count."""

    name: str
    fingerprint: str = ""
    accuracy: Fraction | None = None
    """On the validation split."""
    macs: float | None = None


class DataSection(Section):
    """What the images are."""

    name: str
    fingerprint: str


class Budget(Section):
    """What the steps may spend together."""

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    """Of the student."""
    images: Count
    """Trained on in an epoch."""
    student_macs: Count
    macs: Count
    """Multiply-accumulates: 3 x student_macs x images x epochs."""


class SupernetSection(Section):
    """The run's own supernet, which a step begins from. The search has paid for it: the budget does not."""

    fingerprint: str
    macs: Count
    """Multiply-accumulates of its training, counted as the budget is."""


class MeasuredRoute(Section):
    """A route tried with a part of the budget. `accuracy` is on the validation split, None where it was not tried."""

    route: Route
    epochs: int
    """Of the student: what the whole route might spend."""
    accuracy: Fraction | None = None
    train_seconds: float = 0.0
    note: str = ""


class DistilStep(Section):
    """One network, trained beside a teacher."""

    name: Name
    kind: Literal["distil"] = "distil"
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    """Of the budget."""
    arch: ArchSection
    teacher: str = TEACHER
    init: str = RANDOM
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    learning_rate: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """Factor of the recipe's."""

    def network(self, task: TaskSpec) -> Arch:
        """Return the network that the step gives, for any task. Raises ConfigError where it is none."""
        arch: Arch = STUDENTS.build(self.arch.family).canonical(self.arch.choices)
        return arch


class SpaceSection(Section):
    """The networks of a supernet; the fields of a search space."""

    family: str
    choices: dict[str, Annotated[list[bool | int | float | str], Field(min_length=1)]]
    conditions: list[dict[str, Any]] = Field(default=[])
    fixed: dict[str, bool | int | float | str] = Field(default={})


class SupernetStep(Section):
    """All networks between the largest and the student, trained at once; the student is cut out."""

    name: Name
    kind: Literal["supernet"] = "supernet"
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    """Of the budget; the training of the supernet spends it whole."""
    space: SpaceSection
    teacher: Literal["teacher"] = "teacher"
    init: Literal["random"] = "random"
    settings: SupernetSettings = SupernetSettings()
    recorded: dict[str, Any] | None = None
    """The stages as they went: what `Schedule.as_dict` gives."""

    @property
    def search_space(self) -> SearchSpace:
        """The space of the supernet. Raises RunFolderError where its conditions are damaged."""
        return recorded_space(self.name, self.space.model_dump())

    @property
    def schedule(self) -> Schedule | None:
        """The recorded stages. Raises KeyError, TypeError, ValueError or AttributeError where they are damaged."""
        return None if self.recorded is None else Schedule.from_dict(self.recorded)

    def budget(self, whole: int) -> int:
        """Return what the supernet's training may spend of the `whole` budget, in multiply-accumulates."""
        return round(self.share * whole)

    def network(self, task: TaskSpec) -> Arch:
        """Return the network that the step gives: the smallest. Raises ConfigError, RunFolderError."""
        elastic, ladders = ladders_of(self.search_space, task)
        return elastic.spec(ladders.smallest(ladders.values)).arch


Step = DistilStep | SupernetStep
_KINDS: Mapping[str, type[DistilStep] | type[SupernetStep]] = {"distil": DistilStep, "supernet": SupernetStep}


class _Head(Section):
    """A schedule without its steps."""

    format: Literal["kdnas training schedule 1"] = FORMAT
    study: str
    student: StudentSection
    teacher: TeacherSection
    data: DataSection
    space: str = ""
    """Hash of the study's search space."""
    supernet: SupernetSection | None = None
    budget: Budget
    route: Route
    why: str
    measured: tuple[MeasuredRoute, ...] = ()


class TrainingSchedule(_Head):
    """How one student is trained, step by step."""

    steps: Annotated[tuple[DistilStep | SupernetStep, ...], Field(min_length=1)]

    def plain(self) -> dict[str, Any]:
        """Return plain data in the order of the file; what is not known is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def with_recorded(self, name: str, recorded: Schedule) -> TrainingSchedule:
        """Return the schedule with the stages of the supernet step `name` recorded."""
        steps = [
            step.model_copy(update={"recorded": recorded.as_dict()})
            if isinstance(step, SupernetStep) and step.name == name
            else step
            for step in self.steps
        ]
        return self.model_copy(update={"steps": tuple(steps)})


def ladders_of(space: SearchSpace, task: TaskSpec) -> tuple[ElasticSpace, Ladders]:
    """Return `space` as the training of its supernet sees it, and its ladders. Raises ConfigError."""
    family: StudentFamily = STUDENTS.build(space.family)
    elastic = ElasticSpace(space, family, task)
    return elastic, Ladders.of(elastic.space, elastic.price)


def dump_schedule(schedule: TrainingSchedule) -> str:
    """Return the text of a schedule.yaml, its header included."""
    header = _HEADER.format(arch_id=schedule.student.arch_id, study=schedule.study)
    return header + dump_yaml(schedule.plain(), compact=True)


def write_training_schedule(path: Path, schedule: TrainingSchedule) -> None:
    """Write `schedule` to `path`, whole or not at all. Raises RunFolderError."""
    write_text(path, dump_schedule(schedule))


def load_schedule(path: Path) -> tuple[TrainingSchedule, YamlDocument]:
    """Return the schedule at `path` and its lines. Raises ConfigError with everything that its form breaks.

    Whether its steps can be done is told by `kdnas.plan.schedule_checks`.
    """
    document = read_yaml(path)
    if document.data.get("format") != FORMAT:
        raise ConfigError(Problem(str(path), "is no training schedule", f"a file that begins with 'format: {FORMAT}'"))
    plain = dict(document.data)
    raw = plain.pop("steps", None)
    problems: list[Problem] = []
    head = _validated(_Head, plain, "", problems)
    steps: list[Any] = []
    if not isinstance(raw, list) or not raw:
        problems.append(Problem("steps", "is a list of steps, each with a kind", ", ".join(_KINDS)))
        raw = []
    for index, item in enumerate(raw):
        kind = item.get("kind") if isinstance(item, dict) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            problems.append(Problem(f"steps.{index}.kind", f"{kind!r} is no kind of step", ", ".join(_KINDS)))
            continue
        steps.append(_validated(_KINDS[kind], item, f"steps.{index}.", problems))
    if problems or head is None:
        raise ConfigError(document.in_order(problems))
    return TrainingSchedule.model_construct(**dict(head), steps=tuple(steps)), document


def _validated(model: type[Section], plain: Any, prefix: str, problems: list[Problem]) -> Any:
    """Return `plain` as a `model`, None where it is not, with everything wrong added to `problems`."""
    try:
        return model.model_validate(plain)
    except pydantic.ValidationError as error:
        problems += [
            Problem(f"{prefix}{problem.where}", problem.what, problem.allowed)
            for problem in validation_problems(error, model)
        ]
        return None
