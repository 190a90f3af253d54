"""What happens to one student: it is measured, refused or trained, and its numbers are reported.

A `Bench` is everything opened that this takes. A `Workplan` is its picklable recipe: each worker opens a bench of its
own and answers jobs. Jobs and results are plain dictionaries, so that any executor can carry them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import ImageArrays, ImageData
from kdnas.core.fidelity import Fidelity
from kdnas.core.measurement import Measurement
from kdnas.core.objective import ACCURACY, Constraint, Quantity
from kdnas.core.seeds import derive_seed
from kdnas.costs import COSTS, CheapCost, MeasuredCost
from kdnas.errors import TrialError
from kdnas.executors import Evaluate
from kdnas.nn.normalise import Normalised
from kdnas.nn.weights import save_weights
from kdnas.students import STUDENTS, StudentFamily
from kdnas.study.config import StudyConfig
from kdnas.study.opening import open_data, open_teacher, split, training_indices
from kdnas.study.tuning import final_recipe, tuned_recipe
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.distil import Trained, distil
from kdnas.training.evaluation import accuracy
from kdnas.training.recipe import Recipe
from kdnas.training.teacher_cache import TeacherCache


def named_costs(config: StudyConfig) -> list[str]:
    """Return the costs a study reports: macs, params, and every one that it names, in a fixed order."""
    named = {"macs", "params", *config.costs, *config.objectives, *(bound.name for bound in config.bounds)}
    return sorted(named - {ACCURACY.name}, key=lambda name: (name not in ("macs", "params"), name))


def quantities(config: StudyConfig) -> dict[str, Quantity]:
    """Return every quantity that the study's trials know, by name."""
    return {ACCURACY.name: ACCURACY, **{name: COSTS.get(name).quantity for name in named_costs(config)}}


@dataclass(frozen=True)
class Job:
    """One training to do. Seeds are absolute; `checkpoint` is where the weights go, relative to the run folder."""

    arch: Arch
    recipe: Recipe
    init_seed: int
    view_seed: int
    measure: bool = True
    """Measure costs first, and do not train a student that breaks a constraint."""
    test: bool = False
    """Also score on the test split: only the final evaluation of the front does."""
    checkpoint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**plain, "arch": self.arch.canonical_json, "recipe": self.recipe.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Job:
        """Return the job that `as_dict` wrote."""
        arch, recipe = Arch.from_json(plain["arch"]), Recipe.model_validate(plain["recipe"])
        return cls(**{**plain, "arch": arch, "recipe": recipe})

    @property
    def fidelity(self) -> Fidelity:
        """How much training the score will have seen."""
        return Fidelity(self.recipe.training.epochs, self.recipe.training.data_fraction)


@dataclass(frozen=True)
class Bench:
    """Data, teacher, family and costs of one study, opened on one device."""

    config: StudyConfig
    family: StudentFamily
    data: ImageData
    train_indices: np.ndarray
    validation_indices: np.ndarray
    teacher: Teacher
    device: torch.device
    costs: Mapping[str, CheapCost | MeasuredCost]

    @classmethod
    def open(
        cls,
        config: StudyConfig,
        family: str,
        *,
        data_root: Path,
        cache: Path,
        device: torch.device,
        say: Callable[[str], None] = lambda line: None,
    ) -> Bench:
        """Open data, split, teacher and costs. Raises DataError, TeacherError or ConfigError."""
        data = open_data(config.data, data_root, cache)
        train_indices, validation_indices = split(data, config.data, config.seed)
        teacher = open_teacher(
            config.teacher,
            data,
            train_indices,
            data_root=data_root,
            cache=cache,
            device=device,
            seed=config.seed,
            say=say,
        )
        costs: dict[str, CheapCost | MeasuredCost] = {}
        for name in named_costs(config):
            objects = (device,) if issubclass(COSTS.get(name), MeasuredCost) else ()
            costs[name] = COSTS.build(name, *objects, **config.costs.get(name, {}))
        return cls(config, STUDENTS.build(family), data, train_indices, validation_indices, teacher, device, costs)

    @property
    def measured_costs(self) -> dict[str, MeasuredCost]:
        """The costs that need a built student."""
        return {name: cost for name, cost in self.costs.items() if isinstance(cost, MeasuredCost)}

    def price(self, arch: Arch) -> dict[str, float]:
        """Return the cheap costs of `arch`."""
        price = self.family.price(arch, self.data.task)
        return {name: cost.value(price) for name, cost in self.costs.items() if isinstance(cost, CheapCost)}

    def measure(self, module: nn.Module, calibrations: Mapping[str, Mapping[str, Any]]) -> dict[str, Measurement]:
        """Return the measured costs of a built student."""
        return {
            name: cost.measure(module, self.data.task, calibrations.get(name, {}))
            for name, cost in self.measured_costs.items()
        }

    def batches(self, arrays: ImageArrays, indices: np.ndarray) -> Batches:
        """Return batches of some samples on this bench's device."""
        return Batches(arrays, indices, num_classes=self.data.task.num_classes, device=self.device)

    @cached_property
    def validation(self) -> Batches:
        """The validation split: search scores are made on it."""
        return self.batches(self.data.train, self.validation_indices)

    @cached_property
    def test(self) -> Batches:
        """The test split: only for the final evaluation of the front."""
        return self.batches(self.data.test, np.arange(len(self.data.test)))


def violations(values: Mapping[str, float], constraints: tuple[Constraint, ...]) -> list[str]:
    """Return, in words, the constraints that `values` break; unknown quantities break none."""
    return [
        f"{bound.name} {values[bound.name]:.6g} breaks {bound}"
        for bound in constraints
        if bound.name in values and bound.violation(values[bound.name]) > 0
    ]


@dataclass(frozen=True)
class Workplan:
    """What a worker needs to open its own bench. Called once, it returns the worker's `Evaluate`."""

    config: StudyConfig
    family: str
    folder: Path
    data_root: Path
    cache: Path
    device: str
    calibrations: Mapping[str, Mapping[str, Any]]

    def __call__(self) -> Evaluate:
        """Open the bench and return the evaluator."""
        bench = Bench.open(
            self.config, self.family, data_root=self.data_root, cache=self.cache, device=torch.device(self.device)
        )
        return Evaluator(bench, self.calibrations, self.folder, self.cache)


class Evaluator:
    """Answers jobs on one bench."""

    def __init__(self, bench: Bench, calibrations: Mapping[str, Mapping[str, Any]], folder: Path, cache: Path):
        self._bench = bench
        self._calibrations = calibrations
        self._folder = folder
        self._cache = cache
        self._training_set: tuple[float, Batches] | None = None

    def __call__(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Return the plain result of a plain job. Raises TrialError when the training fails.

        The result has `values`, `measurements`, `train_seconds`, `teacher_seconds`; `infeasible` (the reason) instead
        of an accuracy where a measured constraint is broken; `test_accuracy` where the job asked for it.
        """
        job = Job.from_dict(plain)
        bench = self._bench
        torch.manual_seed(job.init_seed)
        module = bench.family.build(job.arch, bench.data.task).to(bench.device)
        values = bench.price(job.arch)
        measured = bench.measure(module, self._calibrations) if job.measure else {}
        refuse_unmeasurable(measured)
        values |= {name: measurement.value for name, measurement in measured.items()}
        result: dict[str, Any] = {
            "values": values,
            "measurements": {name: measurement.as_dict() for name, measurement in measured.items()},
            "train_seconds": 0.0,
            "teacher_seconds": 0.0,
        }
        broken = violations(values, bench.config.bounds)
        if broken:
            return {**result, "infeasible": "; ".join(broken)}
        trained = self._train(module, job)
        if trained.accuracy is None or not np.isfinite(trained.accuracy):
            raise TrialError(f"the validation accuracy is {trained.accuracy}")
        values["accuracy"] = trained.accuracy
        result |= {"train_seconds": trained.train_seconds, "teacher_seconds": trained.teacher_seconds}
        if job.test:
            network = Normalised(trained.network, bench.data.channel_mean, bench.data.channel_std).to(bench.device)
            result["test_accuracy"] = accuracy(network, bench.test)
        if job.checkpoint is not None:
            save_weights(trained.network, self._folder / job.checkpoint)
        return result

    def _train(self, module: nn.Module, job: Job) -> Trained:
        bench = self._bench
        return distil(
            module,
            bench.teacher,
            self._training_images(job.recipe.training.data_fraction),
            bench.validation,
            job.recipe,
            data=bench.data,
            seed=job.init_seed,
            view_seed=job.view_seed,
            device=bench.device,
            teacher_cache=TeacherCache(self._cache / "teacher_outputs"),
        )

    def _training_images(self, fraction: float) -> Batches:
        """Return this share of the training images. One share is kept: the search has one, the retrainings another."""
        bench = self._bench
        if self._training_set is None or self._training_set[0] != fraction:
            self._training_set = None  # its memory is free before the next is made
            indices = training_indices(bench.data, bench.train_indices, fraction, bench.config.seed)
            self._training_set = fraction, bench.batches(bench.data.train, indices)
        return self._training_set[1]


def refuse_unmeasurable(measured: Mapping[str, Measurement]) -> None:
    """Raise TrialError where a measured value is no finite number: it would meet every constraint and top the front."""
    for name, measurement in measured.items():
        if not np.isfinite(measurement.value):
            raise TrialError(f"the measured {name} is {measurement.value}")


def search_job(config: StudyConfig, arch: Arch, tuned: Mapping[str, float]) -> Job:
    """Return the brief training that scores `arch`.

    The initialisation depends on the arch alone and the views are shared by all trials (common random numbers), so a
    score does not depend on when the arch was proposed.
    """
    return Job(
        arch,
        tuned_recipe(config.recipe, tuned),
        init_seed=derive_seed(config.seed, "init", arch.arch_id),
        view_seed=derive_seed(config.seed, "views"),
    )


def final_job(config: StudyConfig, number: int, arch: Arch, tuned: Mapping[str, float], repeat: int) -> Job:
    """Return retraining `repeat` of finalist `number`: another initialisation and other views each time."""
    return Job(
        arch,
        final_recipe(config, tuned),
        init_seed=derive_seed(config.seed, "final", repeat, arch.arch_id),
        view_seed=derive_seed(config.seed, "final views", repeat),
        measure=False,
        test=True,
        checkpoint=f"checkpoints/trial{number:04d}-{arch.arch_id}-seed{repeat}.safetensors",
    )
