"""Evaluators: where the score of a student comes from.

An evaluator is opened once by the controller, which prices and checks proposals with it, and once by each worker, which
answers jobs with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, TypeVar

import torch

from kdnas.core.arch import Arch, Scalar
from kdnas.core.block_library import BlockLibrary
from kdnas.core.measurement import Calibration, Measurement
from kdnas.core.objective import Quantity
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem, TrialError
from kdnas.outlets import Notify, silent
from kdnas.record.lock import Findings, Lock, Machine, SupernetRecord, this_machine
from kdnas.record.records import Result, TrialRecord
from kdnas.registry import Registry
from kdnas.store import NO_STORE, Store
from kdnas.study.config import StudyConfig
from kdnas.training.packing import Packing
from kdnas.training.recipe import Recipe
from kdnas.workshop.jobs import Job
from kdnas.workshop.numerics import differences
from kdnas.workshop.opening import MadeOn, cache_dir
from kdnas.workshop.opening import data_root as own_data_root
from kdnas.workshop.run_files import RunFiles
from kdnas.workshop.travelling_code import TravellingCode

T = TypeVar("T")
Progress = Callable[[float], None]
"""Takes the share of a job that is done, in [0, 1]."""


@dataclass(frozen=True)
class EvaluatorContext:
    """What an evaluator is opened from. Picklable: a worker opens its own from the same context."""

    config: StudyConfig
    space: SearchSpace
    folder: Path
    """The run folder."""
    data_root: Path
    cache: Path
    device: str
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """What the run measured once, by cost: empty until `Evaluator.facts` has found it."""
    supernet: SupernetRecord | None = None
    """The run's supernet: None until `Evaluator.prepare` has trained it."""
    made_on: MadeOn = field(default_factory=MadeOn)
    """What the run was made on, as far as it has begun."""
    notify: Notify = silent
    store: Store = NO_STORE
    """What machines that share no folder share."""
    run: str = ""
    """What the store calls the run."""
    prepared: tuple[str, ...] = ()
    """Files of the run that its workers need, relative to the run folder."""
    code: TravellingCode = field(default_factory=TravellingCode)
    """What of the user's own the study has imported."""
    root_is_stated: bool = True
    """Whether the data root was stated for this run: else a machine that has one of its own has its data there."""

    @property
    def files(self) -> RunFiles:
        """The files of the run."""
        return RunFiles(self.folder, self.store, self.run)

    def of_worker(self) -> EvaluatorContext:
        """Return the context of a worker, in its process: with folders of its own where there is a store."""
        cache = cache_dir().resolve()
        code = self.code.arrive(self.store, cache)
        if not self.store.is_shared:
            return self if self.root_is_stated else replace(self, data_root=self._root_here(None))
        files = self.files.at(cache)
        for place in self.prepared:
            files.have(place)
        return replace(self, folder=files.folder, cache=cache, data_root=self._root_here(code))

    def _root_here(self, code: Path | None) -> Path:
        """Return the data root on a worker's machine: the one that the user stated, its own, or that of the code."""
        own = own_data_root(None).absolute()
        roots = (self.data_root, own) if self.root_is_stated else (own, self.data_root)
        there = [root for root in roots if root.is_dir() and any(root.iterdir())]
        return there[0] if there else code or self.data_root


class Evaluator(ABC):
    """One way to score students.

    Calling it with a job (`kdnas.workshop.jobs`) returns the result. It raises TrialError when the scoring fails.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """What a study must state for it: of "data", "teacher" and "family" (of its space)."""
    continues: ClassVar[bool] = False
    """Whether a student that is promoted goes on from the weights of the rung below; else it is scored anew."""
    repeats: int | None = None
    """How many independent retrainings it can give; None: any number."""
    lengths: tuple[int, ...] | None = None
    """After how many epochs it has scores, rising; None: after any number."""

    def __init__(self, context: EvaluatorContext):
        self.context = context
        self.calibrations = context.calibrations
        self.supernet = context.supernet
        self.library: BlockLibrary | None = None
        """The run's block library: None until `prepare` has made it, and where the study asks for none."""
        self.notify = context.notify
        self.progress: Progress = silent

    @property
    @abstractmethod
    def quantities(self) -> Mapping[str, Quantity]:
        """Every quantity that its students have, by name, the score first."""

    @property
    @abstractmethod
    def fingerprints(self) -> Mapping[str, str]:
        """What its scores rest on, hashed, by name: a run is not resumed when one of them has changed."""

    @property
    def teacher_answers(self) -> tuple[float, ...]:
        """A sketch of what the teacher outputs for a few samples, which distinguishes teachers where hashes do not."""
        return ()

    @property
    @abstractmethod
    def description(self) -> dict[str, str]:
        """What was opened, in words by topic, for `kdnas validate --open`."""

    @property
    def cutting(self) -> dict[str, list[str]]:
        """What students are cut along, and what of their teacher stays whole and why, in words; empty: nothing is."""
        return {}

    @property
    def machine(self) -> Machine:
        """The machine that its scores are computed on, or one like it."""
        return this_machine()

    def differences(self, locked: Lock) -> list[str]:
        """Return in words in what that machine differs from the one on which the run of `locked` began."""
        return differences(locked, self.context.config, torch.device(self.context.device))

    @property
    def measured(self) -> tuple[str, ...]:
        """The quantities that are measured on the built student."""
        return tuple(name for name, quantity in self.quantities.items() if quantity.kind == "measured")

    @property
    def space(self) -> SearchSpace:
        """The space as it is searched."""
        return self.context.space

    def arch(self, assignment: Mapping[str, Scalar]) -> Arch:
        """Return the arch that a full assignment stands for: named after the space, for no family is asked."""
        return Arch.of(self.space.name, self.space.active(assignment))

    @abstractmethod
    def price(self, arch: Arch) -> dict[str, float]:
        """Return the cheap quantities of `arch`; microseconds."""

    @abstractmethod
    def facts(self) -> Findings:
        """Return what is found out once a run. The evaluator uses the calibrations itself from then on.

        Raises InputError where the study cannot be run.
        """

    def try_out(self, students: Mapping[str, Arch]) -> None:
        """Raise InputError where one of `students`, by what they are called, cannot be trained as the study states."""
        return

    def check_recipe(self, recipe: Recipe, arch: Arch) -> None:
        """Raise ConfigError where the student `arch` cannot be trained by `recipe`."""
        return

    def calibrate(self, calibrations: Mapping[str, Calibration]) -> None:
        """Measure and price by `calibrations` from now on."""
        self.calibrations = calibrations

    def keep(self) -> None:
        """Write into the run folder what workers, and a resume, find there: called once the lock file is there."""
        return

    def prepare(self) -> SupernetRecord | None:
        """Do the long work that comes before all scores, and return the supernet, where they rest on one.

        That is the training of a supernet and the making of a block library, which is then `self.library`.

        It is called whenever the controller opens a run, once the lock file is there, so that a work that was stopped
        is continued; `self.supernet` is what came of it, where it is done. Raises RunFolderError where that is not in
        the run folder any more.
        """
        return None

    def is_part(self, arch: Arch, larger: Arch) -> bool:
        """Return whether a student of `arch` can be cut out of one of `larger`."""
        return False

    def measure(self, arch: Arch) -> dict[str, Measurement]:
        """Return the measured quantities of `arch`, built anew. Raises TrialError where they are no finite numbers."""
        return {}

    def done(self, what: str, do: Callable[[Evaluator], T]) -> T:
        """Return `do` of the evaluator that has data and teachers open, as this one has; `what` describes it."""
        return do(self)

    @abstractmethod
    def __call__(self, job: Job) -> Result:
        """Return the result of a job."""

    def together(self, jobs: Sequence[Job]) -> list[Result | TrialError]:
        """Return the result of every job, or why it failed: at once where the evaluator can."""
        return [attempted(lambda job=job: self(job)) for job in jobs]  # type: ignore[misc]

    def at_once(self) -> Packing:
        """Return how many jobs one worker should answer at once on this device, measured here; seconds."""
        return Packing(1)

    def check(self, trial: TrialRecord) -> None:
        """Raise RunError where the record of a finalist contradicts the student itself."""
        return

    def teacher_test_score(self) -> float | None:
        """Return the teacher's score on the test split, None where there is no teacher."""
        return None

    def teacher_further(self) -> Mapping[str, float]:
        """Return what else is known of how good the teacher is on the test split, by name."""
        return {}


def attempted(answer: Callable[[], T]) -> T | TrialError:
    """Return `answer()`, or the TrialError that it raises."""
    try:
        return answer()
    except TrialError as error:
        return error


EVALUATORS: Registry[Callable[..., Evaluator]] = Registry("evaluator", __name__, Evaluator)
"""Members: Evaluator classes, `(context: EvaluatorContext, *, options)`."""


def open_evaluator(context: EvaluatorContext) -> Evaluator:
    """Return what scores the study's students. Raises InputError where something that it needs is wrong."""
    config = context.config
    evaluator: Evaluator = EVALUATORS.build(config.evaluator.type, context, **config.evaluator.options)
    unknown = [name for name in (*config.objectives, *config.bounded) if name not in evaluator.quantities]
    if unknown:
        raise ConfigError(
            Problem("evaluator", f"{config.evaluator.called} does not return {name}", ", ".join(evaluator.quantities))
            for name in dict.fromkeys(unknown)
        )
    return evaluator


@dataclass(frozen=True)
class Workplan:
    """Opens a worker's own evaluator: picklable, called once in each worker."""

    context: EvaluatorContext

    def __post_init__(self) -> None:
        made_on = replace(self.context.made_on, reader="worker")
        object.__setattr__(self, "context", replace(self.context, notify=silent, made_on=made_on))

    def __call__(self) -> Evaluator:
        """Return the worker's evaluator."""
        return open_evaluator(self.context.of_worker())


def names(quantities: Sequence[Quantity]) -> dict[str, Quantity]:
    """Return `quantities` by name."""
    return {quantity.name: quantity for quantity in quantities}
