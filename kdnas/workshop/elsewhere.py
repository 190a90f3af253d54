"""Distillation where data, teachers and devices are not: an evaluator that has its heavy work done elsewhere.

Who holds the run (the controller) prices and checks proposals, which takes what workers report once (`Opening`). What
needs an open workshop is an errand that a worker does: it opens its own evaluator and answers with what came of it.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from kdnas.core.arch import Arch, Scalar
from kdnas.core.block_library import BlockLibrary
from kdnas.core.measurement import Calibration, Measurement
from kdnas.core.objective import Quantity
from kdnas.core.space import SearchSpace
from kdnas.core.task import TaskSpec
from kdnas.costs import COSTS, CheapCost
from kdnas.errors import KdnasError
from kdnas.outlets import Notify, silent
from kdnas.record.lock import Findings, Lock, Machine, SupernetRecord, this_machine
from kdnas.record.records import Result, TrialRecord
from kdnas.students import family_for
from kdnas.study.config import StudyConfig
from kdnas.study.spaces import arch_of
from kdnas.training.packing import Packing
from kdnas.training.recipe import Recipe
from kdnas.workshop.evaluators import Evaluator, EvaluatorContext, names, open_evaluator
from kdnas.workshop.evaluators.distil import Distil
from kdnas.workshop.jobs import Job
from kdnas.workshop.latency_table import TablePrices
from kdnas.workshop.numerics import settled_config
from kdnas.workshop.opening import Sources, resolve_device

T = TypeVar("T")


@dataclass(frozen=True)
class Errand:
    """Work for whoever has the workshop open: `do` takes its evaluator. Picklable."""

    what: str
    do: Callable[[Distil], Any]
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """What the run has measured so far."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form."""
        return {"errand": self.what}


@dataclass(frozen=True)
class Answer:
    """What came of an errand, or the error that it ended with."""

    content: Any = None
    error: KdnasError | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    """It states no quantities."""


class Ask(Protocol):
    """Has an errand done. Raises what it raised there."""

    def __call__(self, what: str, do: Callable[[Distil], T], calibrations: Mapping[str, Calibration] = ...) -> T:
        """Return what `do` returned."""


@dataclass(frozen=True)
class ErrandPlan:
    """Opens who does errands: picklable, called once in a worker. The evaluator is opened by the first of them."""

    context: EvaluatorContext
    """Its config and its device may be as they are stated: they are settled where the errands are done."""
    locked: Lock | None = None
    """The run's lock file as it was when the controller began, None where there was none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", dataclasses.replace(self.context, notify=silent))

    def __call__(self) -> ErrandRunner:
        """Return the worker's."""
        return ErrandRunner(self)


class ErrandRunner:
    """Does errands, one after the other, with one evaluator. Its lines go to `notify`."""

    def __init__(self, plan: ErrandPlan):
        self._plan = plan
        self._evaluator: Distil | None = None
        self.notify: Notify = silent

    def __call__(self, errand: Errand) -> Answer:
        """Return what came of it; foreseen errors are part of the answer."""
        try:
            evaluator = self._evaluator = self._evaluator or self._opened()
            if errand.calibrations:
                evaluator.calibrate(errand.calibrations)
            return Answer(errand.do(evaluator))
        except KdnasError as error:
            return Answer(error=error)

    def _opened(self) -> Distil:
        context = self._plan.context.of_worker()
        device = resolve_device(context.device)
        config = settled_config(context.config, device, self._plan.locked)
        own = dataclasses.replace(context, config=config, device=str(device), notify=lambda line: self.notify(line))
        evaluator = open_evaluator(own)
        assert isinstance(evaluator, Distil)
        return evaluator


@dataclass(frozen=True)
class Opening:
    """What is known of a study once its workshop is open, as far as proposing and recording need it."""

    config: StudyConfig
    """With its numerics settled on the machine of the workers."""
    device: str
    machine: Machine
    task: TaskSpec
    space: SearchSpace
    outline: object | None
    """Of the students' family."""
    quantities: tuple[Quantity, ...]
    fingerprints: Mapping[str, str]
    teacher_answers: tuple[float, ...]
    description: Mapping[str, str]
    cutting: Mapping[str, list[str]]


def _opening(evaluator: Distil) -> Opening:
    workshop, context = evaluator.workshop, evaluator.context
    return Opening(
        context.config,
        context.device,
        this_machine(),
        workshop.data.task,
        evaluator.space,
        workshop.family.outline,
        tuple(evaluator.quantities.values()),
        evaluator.fingerprints,
        evaluator.teacher_answers,
        evaluator.description,
        evaluator.cutting,
    )


class DistilElsewhere(Evaluator):
    """The evaluator `distil`, whose work is done by workers: nothing is opened here; it uses what workers reported."""

    continues = Distil.continues

    def __init__(self, context: EvaluatorContext, ask: Ask):
        known: Opening = ask("opening data and teachers", _opening)
        super().__init__(dataclasses.replace(context, config=known.config, device=known.device))
        self._ask, self._known = ask, known
        space = known.space
        self._family = family_for(space.family, known.task, outline=known.outline, options=space.options)
        stated = Sources.of_study(known.config, space).costs
        kinds = {name: (COSTS.get(member.type), member.options) for name, member in stated.items()}
        self._costs = {name: kind(**options) for name, (kind, options) in kinds.items() if issubclass(kind, CheapCost)}
        self.calibrate(context.calibrations)

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """The task's score and the costs that the study names."""
        return names(self._known.quantities)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the data, of the teachers, and of what the family has found out."""
        return self._known.fingerprints

    @property
    def teacher_answers(self) -> tuple[float, ...]:
        """What the teacher answers to a few fixed samples."""
        return self._known.teacher_answers

    @property
    def description(self) -> dict[str, str]:
        """The samples and the teacher."""
        return dict(self._known.description)

    @property
    def cutting(self) -> dict[str, list[str]]:
        """What students are cut along, and what of their teacher stays whole and why."""
        return dict(self._known.cutting)

    @property
    def space(self) -> SearchSpace:
        """The space as it is searched."""
        return self._known.space

    @property
    def machine(self) -> Machine:
        """The machine of the worker that opened the study."""
        return self._known.machine

    def differences(self, locked: Lock) -> list[str]:
        """Return in words in what that machine differs from the run's."""
        return self.done("comparing machines", operator.methodcaller("differences", locked))

    def arch(self, assignment: Mapping[str, Scalar]) -> Arch:
        """Return the arch that a full assignment stands for, as the family spells it."""
        return arch_of(self.space, assignment, self._family)

    def price(self, arch: Arch) -> dict[str, float]:
        """Return the closed-form costs of `arch`, and those that the run's latency table prices."""
        price = self._family.price(arch)
        return {name: cost.value(price) for name, cost in self._costs.items()} | self._table_prices(arch)

    def is_part(self, arch: Arch, larger: Arch) -> bool:
        """Return whether a student of `arch` can be cut out of one of `larger`."""
        return self._family.is_part(arch, larger)

    def calibrate(self, calibrations: Mapping[str, Calibration]) -> None:
        """Measure and price by `calibrations` from now on."""
        super().calibrate(calibrations)
        self._table_prices = TablePrices(calibrations, self._family)

    def facts(self) -> Findings:
        """Have the teachers checked and measured, and the measured costs calibrated."""
        found = self.done("measuring the teachers", operator.methodcaller("facts"))
        self.calibrate(found.calibrations)
        return found

    def try_out(self, students: Mapping[str, Arch]) -> None:
        """Have every loss of the recipe tried on the teachers and these students."""
        self.done("trying the losses", operator.methodcaller("try_out", dict(students)))

    def check_recipe(self, recipe: Recipe, arch: Arch) -> None:
        """Have every loss of `recipe` tried on the teachers and on the student `arch`."""
        self.done("trying the losses", operator.methodcaller("check_recipe", recipe, arch))

    def keep(self) -> None:
        """Have what was found out once written, and get it into the run folder."""
        self._fetch(self.done("keeping what was found out", _kept))

    def prepare(self) -> SupernetRecord | None:
        """Have the run's supernet trained and its block library made, and get them into the run folder."""
        self.supernet, self.library, places = self.done("preparing", partial(_prepared, self.supernet))
        self._fetch(places)
        return self.supernet

    def _fetch(self, places: Sequence[str]) -> None:
        for place in places:
            self.context.files.have(place)

    def measure(self, arch: Arch) -> dict[str, Measurement]:
        """Have the measured costs of `arch` taken, built anew."""
        return self.done("measuring a student", operator.methodcaller("measure", arch))

    def at_once(self) -> Packing:
        """Have it measured how many students pay on a worker's device."""
        return self.done("measuring students at once", operator.methodcaller("at_once"))

    def check(self, trial: TrialRecord) -> None:
        """Have the record of a finalist compared with the student itself."""
        self.done("checking a finalist", operator.methodcaller("check", trial))

    def teacher_test_score(self) -> float | None:
        """Return the teacher's score on the test split."""
        return self.done("testing the teacher", operator.methodcaller("teacher_test_score"))

    def teacher_further(self) -> Mapping[str, float]:
        """Return what else is known of how good the teacher is on the test split, by name."""
        return self.done("testing the teacher", operator.methodcaller("teacher_further"))

    def done(self, what: str, do: Callable[[Any], T]) -> T:
        """Return `do` of the evaluator that a worker has open."""
        return self._ask(what, do, self.calibrations)

    def __call__(self, job: Job) -> Result:
        """Have one job done."""
        return self.done("a training", operator.methodcaller("__call__", job))


def fill_ahead(evaluator: Distil) -> None:
    """Compute the teacher's outputs that the training of the run's supernet will ask for, for whoever trains it."""
    evaluator.notify = silent  # nobody listens
    evaluator.run_supernet.fill_ahead(evaluator.teacher_cache)


def _kept(evaluator: Distil) -> tuple[str, ...]:
    evaluator.keep()
    return evaluator.context.files.share_made()


def _prepared(
    known: SupernetRecord | None, evaluator: Distil
) -> tuple[SupernetRecord | None, BlockLibrary | None, tuple[str, ...]]:
    evaluator.supernet = evaluator.supernet or known
    supernet = evaluator.prepare()
    return supernet, evaluator.library, evaluator.context.files.share_made()
