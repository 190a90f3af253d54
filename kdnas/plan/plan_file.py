"""plan.yaml: how one student is trained fully, in steps that `kdnas train --plan` or any other pipeline follows.

The recipe (data, views, losses, optimizer) is that of the student's train.yaml; a step states what is trained how long
by which teacher, and how it begins. What a supernet step unlocked when is recorded in it, as a shrinking.yaml does.
Earlier versions called the file schedule.yaml and its format `kdnas training schedule 1`; both are still read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, PlainSerializer, PlainValidator

from kdnas.core.arch import Arch
from kdnas.core.route import Corner, Route
from kdnas.core.shrinking import ShrinkingRecord
from kdnas.core.space import Choice, Condition, SearchSpace
from kdnas.errors import ConfigError, InputError, Problem
from kdnas.faults import reach
from kdnas.plain_yaml import dump_yaml
from kdnas.plan.train_file import ArchSection, TrainFile
from kdnas.record.lock import scored
from kdnas.record.run_folder import write_text
from kdnas.registry import Section, validation_problems
from kdnas.students import StudentFamily, sibling_family, stated_arch
from kdnas.study.yaml_lines import YamlDocument, read_yaml
from kdnas.training.supernet import SupernetSettings
from kdnas.training.supernet.policies._recorded import Recorded
from kdnas.training.supernet.subnets import ElasticSpace

PLAN_FILE = "plan.yaml"
_EARLIER_FILE = "schedule.yaml"
FORMAT: Literal["kdnas training plan 1"] = "kdnas training plan 1"
_EARLIER_FORMAT = "kdnas training schedule 1"
TEACHER = "teacher"
RANDOM, INHERITED = "random", "inherited"
RUN_SUPERNET = "run-supernet"

Count = Annotated[int, Field(ge=1)]


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,40}", text):
        raise ValueError("must be at most 41 of a-z, 0-9, '_' and '-', a letter or digit first")
    return text


Name = Annotated[str, AfterValidator(_name)]

_HEADER = """\
# How to train student {arch_id} of {study}: written by `kdnas schedule`, followed by `kdnas train --plan`.
#
# The steps are done in order; the last one gives the student. Data, views, losses and optimizer are those of the
# student's train.yaml (`kdnas export --format train_yaml`), with the step's epochs and its factor of the learning rate.
#   distil    trains `arch` for `epochs`. It learns from `teacher`: the study's, or the network of an earlier step. It
#             begins from `init`: random weights, those of the study's teacher as it is cut to the network (inherited),
#             those of the earlier step of that name, which is the same network or, of students cut out of their
#             teacher, a larger one that this one is cut out of; or its weights cut out of the `supernet` that the
#             search trained (run-supernet).
#   supernet  trains all networks of `space` at once, beginning from `init` as above; every list begins with the value
#             of the largest network. `settings` decide which values may be sampled when; what was decided is in
#             `recorded`, and a plan that has it is followed to the letter. Then the student, the smallest network
#             unless `cut` says largest, is cut out and its batch-norm statistics are estimated anew.
# The budget, the same for every route, is epochs x samples x 3 x student_macs: 3 x MACs for each sample that a network
# is trained on, and 1 x for each one that the supernet's policy measures on. Teachers' forward passes are not counted.
"""


class StudentSection(ArchSection):
    """The student that the plan ends with."""

    arch_id: str


class _ScoredSection(Section):
    """A section with a score, which earlier versions called an accuracy."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _scored(cls, plain: Any) -> Any:
        return scored(plain) if isinstance(plain, dict) else plain


class TeacherSection(_ScoredSection):
    """The study's teacher, whose forward passes the budget does not count."""

    name: str
    fingerprint: str = ""
    score: float | None = None
    """On the validation split."""
    macs: float | None = None


class DataSection(Section):
    """What the samples are."""

    name: str
    fingerprint: str


class Budget(Section):
    """What the steps may spend together."""

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    """Of the student."""
    samples: Annotated[int, Field(ge=1, validation_alias=AliasChoices("samples", "images"))]
    """Trained on in an epoch; earlier versions called them images."""
    student_macs: Count
    macs: Count
    """Multiply-accumulates: 3 x student_macs x samples x epochs."""

    @classmethod
    def of(cls, epochs: int, samples: int, student_macs: int) -> Budget:
        """Return the budget of so many epochs of the student."""
        macs = 3 * student_macs * samples * epochs
        return cls(epochs=epochs, samples=samples, student_macs=student_macs, macs=macs)

    def share(self, epochs: int, macs: int) -> float:
        """Return which share of it `epochs` of a network of `macs` are."""
        return epochs * macs / (self.epochs * self.student_macs)


class SupernetSection(Section):
    """The run's own supernet, which a step begins from. The search has paid for it: the budget does not."""

    fingerprint: str
    macs: Count
    """Multiply-accumulates of its training, counted as the budget is."""


class MeasuredRoute(_ScoredSection):
    """A route tried with a part of the budget. `score` is on the validation split, None where it was not tried."""

    route: Route
    epochs: int
    """Of the student: what the whole route might spend."""
    score: float | None = None
    train_seconds: float = 0.0
    note: str = ""


class DistilStep(Section):
    """One network, trained with a teacher."""

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

    def network(self, family: StudentFamily) -> Arch:
        """Return the network that the step gives. Raises ConfigError where it is none."""
        return stated_arch(self.arch.family, self.arch.choices)


def _recorded(plain: Any) -> ShrinkingRecord:
    return plain if isinstance(plain, ShrinkingRecord) else ShrinkingRecord.from_dict(plain)


RecordedShrinking = Annotated[ShrinkingRecord, PlainValidator(_recorded), PlainSerializer(ShrinkingRecord.as_dict)]


Values = Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)]


class ConditionSection(Section):
    """A choice that is active while another one has one of some values."""

    choice: str
    when: str
    values: Annotated[Values, Field(alias="in")]


class SpaceSection(Section):
    """The networks of a supernet; the fields of a search space."""

    family: str
    choices: dict[str, Values]
    conditions: tuple[ConditionSection, ...] = ()
    fixed: dict[str, bool | int | float | str] = Field(default={})

    def search_space(self, name: str) -> SearchSpace:
        """Return the space, called `name`."""
        choices = tuple(Choice(choice, values) for choice, values in self.choices.items())
        conditions = tuple(Condition(given.choice, given.when, given.values) for given in self.conditions)
        return SearchSpace(name, self.family, choices, conditions, dict(self.fixed))


class SupernetStep(Section):
    """All networks between the student and the largest, or the smallest, trained at once; the student is cut out."""

    name: Name
    kind: Literal["supernet"] = "supernet"
    share: Annotated[float, Field(gt=0.0, le=1.0)]
    """Of the budget; the training of the supernet spends it whole."""
    space: SpaceSection
    teacher: Literal["teacher"] = "teacher"
    init: Literal["random", "inherited"] = "random"
    """Random weights, or those that its largest network has from the teacher."""
    settings: SupernetSettings = SupernetSettings()
    cut: Annotated[Literal["largest"] | None, BeforeValidator(lambda cut: None if cut == "smallest" else cut)] = None
    """The network that the step gives: the largest, or None: the smallest, as in plans of earlier versions."""
    recorded: RecordedShrinking | None = None
    """The stages as they went."""

    @property
    def search_space(self) -> SearchSpace:
        """The space of the supernet."""
        return self.space.search_space(self.name)

    def budget(self, whole: int) -> int:
        """Return what the supernet's training may spend of the `whole` budget, in multiply-accumulates."""
        return round(self.share * whole)

    def elastic(self, family: StudentFamily) -> ElasticSpace:
        """Return the space as the training of its supernet uses it. Raises ConfigError."""
        return ElasticSpace(self.search_space, sibling_family(family, self.space.family))

    def network(self, family: StudentFamily) -> Arch:
        """Return the network that the step gives. Raises ConfigError."""
        return self.elastic(family).corner(self.corner).arch

    @property
    def corner(self) -> Corner:
        """The network that the step gives."""
        return self.cut or "smallest"


Step = DistilStep | SupernetStep
_KINDS: Mapping[str, type[DistilStep] | type[SupernetStep]] = {"distil": DistilStep, "supernet": SupernetStep}


class _Head(Section):
    """A plan without its steps."""

    format: Literal["kdnas training plan 1"] = FORMAT
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


class TrainingPlan(_Head):
    """How one student is trained, step by step."""

    steps: Annotated[tuple[DistilStep | SupernetStep, ...], Field(min_length=1)]

    def plain(self) -> dict[str, Any]:
        """Return plain data in the order of the file; what is not known is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def with_recorded(self, name: str, recorded: ShrinkingRecord) -> TrainingPlan:
        """Return the plan with the stages of the supernet step `name` recorded."""
        steps = [
            step.model_copy(update={"recorded": recorded})
            if isinstance(step, SupernetStep) and step.name == name
            else step
            for step in self.steps
        ]
        return self.model_copy(update={"steps": tuple(steps)})


def find_plan(folder: Path) -> Path:
    """Return the path of the plan.yaml in `folder`, under its earlier name where only that is there."""
    path, earlier = folder / PLAN_FILE, folder / _EARLIER_FILE
    return earlier if earlier.is_file() and not path.is_file() else path


def write_plan(path: Path, plan: TrainingPlan) -> None:
    """Write `plan` to `path`, its header included, whole or not at all. Raises RunFolderError."""
    reach("plan")
    header = _HEADER.format(arch_id=plan.student.arch_id, study=plan.study)
    write_text(path, header + dump_yaml(plan.plain(), compact=True))


def load_plan(path: Path) -> tuple[TrainingPlan, YamlDocument]:
    """Return the plan at `path` and its lines. Raises ConfigError with everything that its form breaks.

    Whether its steps can be followed is checked by `check_plan`.
    """
    document = read_yaml(path)
    if document.data.get("format") not in (FORMAT, _EARLIER_FORMAT):
        raise ConfigError(Problem(str(path), "is no training plan", f"a file that begins with 'format: {FORMAT}'"))
    plain = {**document.data, "format": FORMAT}
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
    return TrainingPlan.model_construct(**dict(head), steps=tuple(steps)), document


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


_ROUNDED = 1e-3
"""A share may differ by so much from what the step's epochs are."""


def check_plan(
    plan: TrainingPlan,
    document: YamlDocument,
    file: TrainFile,
    family: StudentFamily,
    *,
    space: str = "",
    supernet: str = "",
) -> None:
    """Raise ConfigError where `plan` is not for the training of `file`, or else everything that is wrong in it.

    `document` has its lines, `family` is that of the file's student; `space` and `supernet` are the hashes of the run's
    search space and supernet, empty where there is none.
    """
    differences = [
        f"another {what} ({theirs}, here it is {ours})"
        for what, theirs, ours in (
            ("student", plan.student.arch_id, file.arch_id),
            ("teacher", plan.teacher.fingerprint, file.teacher_fingerprint),
            ("data set", plan.data.fingerprint, file.data_fingerprint),
            ("search space", plan.space, space),
            ("supernet", plan.supernet.fingerprint if plan.supernet else "", supernet),
        )
        if theirs and ours and theirs != ours
    ]
    if differences:
        raise ConfigError(Problem(document.name, f"is a plan for {' and '.join(differences)}"))
    if plan.supernet is not None and not supernet:
        what = "begins from the supernet that a search trained: name that run's folder, where the supernet still is"
        raise ConfigError(document.problem("supernet", what))
    problems = plan_problems(plan, family)
    if problems:
        raise ConfigError(document.in_order(problems))


def plan_problems(plan: TrainingPlan, family: StudentFamily) -> list[Problem]:
    """Return everything that keeps `plan` from being followed; `where` is the dotted key."""
    student, problems = _student(plan, family)
    networks: dict[str, Arch | None] = {}
    for index, step in enumerate(plan.steps):
        where = f"steps.{index}"
        if step.name in (*networks, TEACHER, RANDOM, INHERITED, RUN_SUPERNET):
            problems.append(Problem(f"{where}.name", f"{step.name!r} is already taken"))
        problems += _origin_problems(where, step, networks, plan)
        try:
            network = step.network(family)
        except InputError as error:
            inner = ".choices" if isinstance(step, DistilStep) else ""
            part = f"{where}.arch{inner}" if inner else f"{where}.space"
            problems += [Problem(f"{part}.{p.where}".rstrip("."), p.what, p.allowed) for p in error.problems]
            networks[step.name] = None
            continue
        problems += _init_problems(where, step, network, {RUN_SUPERNET: student, **networks}, family)
        if isinstance(step, SupernetStep):
            problems += _supernet_problems(where, step, plan, family)
        else:
            problems += _share_problems(where, step, network, plan, family)
        networks[step.name] = network
    last = networks.get(plan.steps[-1].name)
    if student is not None and last is not None and last != student:
        what = f"the last step gives {last.arch_id}, not the student"
        problems.append(Problem(f"steps.{len(plan.steps) - 1}", what, student.arch_id))
    total = sum(step.share for step in plan.steps)
    if total > 1.0 + _ROUNDED:
        problems.append(Problem("steps", f"spend {total:.4g} of the budget together", "shares of 1 in all"))
    return problems


def _student(plan: TrainingPlan, family: StudentFamily) -> tuple[Arch | None, list[Problem]]:
    """Return the student, None where the file spells none, and what is wrong with it and the budget."""
    section, budget = plan.student, plan.budget
    try:
        arch = stated_arch(section.family, section.choices)
        macs = sibling_family(family, section.family).price(arch).macs
    except ConfigError as error:
        return None, [
            Problem(f"student.choices.{p.where}" if p.where else "student.family", p.what, p.allowed)
            for p in error.problems
        ]
    problems = []
    if arch.arch_id != section.arch_id:
        what = f"is {section.arch_id}, but the choices are those of {arch.arch_id}: one was edited"
        problems.append(Problem("student.arch_id", what))
    if macs != budget.student_macs:
        problems.append(Problem("budget.student_macs", f"is {budget.student_macs}", str(macs)))
    whole = Budget.of(budget.epochs, budget.samples, budget.student_macs).macs
    if whole != budget.macs:
        what = f"is {budget.macs}, not 3 x student_macs x samples x epochs"
        problems.append(Problem("budget.macs", what, str(whole)))
    return arch, problems


def _origin_problems(
    where: str, step: Step, earlier: Mapping[str, Arch | None], plan: TrainingPlan
) -> Iterator[Problem]:
    inits = (RANDOM, INHERITED) if plan.supernet is None else (RANDOM, INHERITED, RUN_SUPERNET)
    for part, given, own in (("teacher", step.teacher, (TEACHER,)), ("init", step.init, inits)):
        if given not in (*own, *earlier):
            yield Problem(f"{where}.{part}", f"{given!r} is no earlier step", ", ".join((*own, *earlier)))


def _init_problems(
    where: str, step: Step, network: Arch, earlier: Mapping[str, Arch | None], family: StudentFamily
) -> Iterator[Problem]:
    origin = earlier.get(step.init)
    if origin is None or origin == network:
        return
    cut_on = step.init != RUN_SUPERNET and origin.family == network.family == family.name
    if not (cut_on and family.is_part(network, origin)):
        yield Problem(f"{where}.init", f"{step.init} gives {origin.arch_id}, this one trains {network.arch_id}")


def _share_problems(
    where: str, step: DistilStep, network: Arch, plan: TrainingPlan, family: StudentFamily
) -> Iterator[Problem]:
    macs = sibling_family(family, network.family).price(network).macs
    share = plan.budget.share(step.epochs, macs)
    if not math.isclose(share, step.share, rel_tol=_ROUNDED, abs_tol=_ROUNDED):
        yield Problem(f"{where}.share", f"is {step.share:g}, but {step.epochs} epochs are {share:.4g} of the budget")


def _supernet_problems(where: str, step: SupernetStep, plan: TrainingPlan, family: StudentFamily) -> list[Problem]:
    if step.settings.resolutions:
        return [Problem(f"{where}.settings.resolutions", "a plan keeps the size of the data's samples", "[]")]
    recorded = step.recorded
    if recorded is None:
        return []
    problems = []
    budget = step.budget(plan.budget.macs)
    if recorded.budget_macs != budget:
        what = f"is {recorded.budget_macs}, but the step's share is {budget}"
        problems.append(Problem(f"{where}.recorded.budget_macs", what))
    try:
        Recorded(step.elastic(family).ladders, step.settings.shrinking, recorded)
    except ConfigError as error:
        problems += [Problem(f"{where}.recorded.stages", str(problem)) for problem in error.problems]
    return problems
