"""What a training evaluator works on: data, split, teacher, family and costs of one study, opened on one device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from kdnas.core.answers import what_differs
from kdnas.core.arch import Arch
from kdnas.core.data import ImageArrays, ImageData
from kdnas.core.measurement import Measurement
from kdnas.core.objective import ACCURACY
from kdnas.costs import COSTS, CheapCost, MeasuredCost
from kdnas.errors import Problem, TeacherError
from kdnas.nn.normalise import Normalised
from kdnas.nn.taps import OutputShapes, output_shapes
from kdnas.students import StudentFamily, family_for
from kdnas.study.config import DataConfig, StudyConfig
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import accuracy
from kdnas.training.loop import EpochRecord
from kdnas.workshop.data_check import split_notes
from kdnas.workshop.evaluators import EvaluatorContext, refuse_unmeasurable
from kdnas.workshop.opening import open_data, open_teacher, split
from kdnas.workshop.run_data import open_handed_data, reopen_data


@dataclass(frozen=True)
class Bench:
    """Data, teacher, family and costs of one study, opened on one device."""

    family: StudentFamily
    data: ImageData
    train_indices: np.ndarray
    validation_indices: np.ndarray
    teacher: Teacher
    device: torch.device
    costs: Mapping[str, CheapCost | MeasuredCost]

    @classmethod
    def open(cls, context: EvaluatorContext) -> Bench:
        """Open data, split, teacher and costs. Raises DataError, TeacherError or ConfigError."""
        config, device, say = context.config, torch.device(context.device), context.say
        data_config, teacher_config = config.sources()
        data = _open_data(context, data_config)
        train_indices, validation_indices = split(data, data_config, config.seed)
        for note in (*data.notes, *split_notes(data, train_indices, validation_indices)):
            say(f"note: {note}")  # before a teacher is trained on it, or refused for what is wrong with it
        teacher = open_teacher(
            teacher_config,
            data,
            train_indices,
            data_root=context.data_root,
            cache=context.cache,
            device=device,
            seed=config.seed,
            numerics=config.training,
            say=say,
        )
        _refuse_another_teacher(context, teacher)
        costs: dict[str, CheapCost | MeasuredCost] = {}
        for name in named_costs(config):
            objects = (device,) if issubclass(COSTS.get(name), MeasuredCost) else ()
            costs[name] = COSTS.build(name, *objects, **config.costs.get(name, {}))
        family = family_for(context.space.family, data.task, {"teacher": teacher})
        return cls(family, data, train_indices, validation_indices, teacher, device, costs)

    @property
    def measured_costs(self) -> dict[str, MeasuredCost]:
        """The costs that need a built student."""
        return {name: cost for name, cost in self.costs.items() if isinstance(cost, MeasuredCost)}

    def price(self, arch: Arch) -> dict[str, float]:
        """Return the cheap costs of `arch`."""
        price = self.family.price(arch)
        return {name: cost.value(price) for name, cost in self.costs.items() if isinstance(cost, CheapCost)}

    def measure(
        self, module: nn.Module, calibrations: Mapping[str, Mapping[str, Any]], wanted: Collection[str]
    ) -> dict[str, Measurement]:
        """Return the `wanted` of the measured costs on a built student. Raises TrialError on no finite number."""
        measured = {
            name: cost.measure(module, self.data.task, calibrations.get(name, {}))
            for name, cost in self.measured_costs.items()
            if name in wanted
        }
        refuse_unmeasurable({name: measurement.value for name, measurement in measured.items()})
        return measured

    def build(self, arch: Arch) -> nn.Module:
        """Return the student on this bench's device, initialised from torch's global generator."""
        return self.family.build(arch).to(self.device)

    def batches(self, arrays: ImageArrays, indices: np.ndarray) -> Batches:
        """Return batches of some samples on this bench's device."""
        return Batches(arrays, indices, num_classes=self.data.task.outputs, device=self.device)

    @cached_property
    def teacher_shapes(self) -> OutputShapes:
        """The shapes of what the teacher says of an image."""
        example = torch.zeros(2, *self.data.task.image_shape, device=self.device)
        return output_shapes(self.teacher.module, self.teacher.stages, self.teacher.classifier, example)

    @cached_property
    def validation(self) -> Batches:
        """The validation split: search scores are made on it."""
        return self.batches(self.data.train, self.validation_indices)

    @cached_property
    def test(self) -> Batches:
        """The test split: only for the final evaluation of the front."""
        return self.batches(self.data.test, np.arange(len(self.data.test)))

    @property
    def data_notes(self) -> tuple[str, ...]:
        """What the user should know of the data and of its split."""
        return (*self.data.notes, *split_notes(self.data, self.train_indices, self.validation_indices))

    def chance(self) -> float:
        """Return the accuracy of always answering the validation split's largest class."""
        labels = self.data.train.labels[self.validation_indices]
        return float(np.bincount(labels).max() / len(labels))

    def describe(self) -> dict[str, Any]:
        """Return the plain facts of the data for the lock file."""
        return {
            "name": self.data.name,
            "class_names": list(self.data.class_names),
            "input_shape": list(self.data.task.image_shape),
            "training_images": len(self.train_indices),
            "validation_images": len(self.validation_indices),
            "test_images": len(self.data.test),
            "channel_mean": list(self.data.channel_mean),
            "channel_std": list(self.data.channel_std),
            **({"notes": list(self.data_notes)} if self.data_notes else {}),
        }


def _open_data(context: EvaluatorContext, config: DataConfig) -> ImageData:
    """Return the data of the study, which are those of its run where that has begun."""
    known, root, cache = context.run_data, context.data_root, context.cache
    if not known:
        return open_data(config, root, cache)
    if context.in_worker:
        return open_handed_data(config, root, cache, known)
    return reopen_data(config, root, cache, known, say=context.say)


def _refuse_another_teacher(context: EvaluatorContext, teacher: Teacher) -> None:
    """Raise TeacherError where a worker has made another teacher than its controller: it would teach something else."""
    where = f"teacher {teacher.name}"
    if context.run_teacher and teacher.fingerprint != context.run_teacher:
        what = (
            f"is another network (content hash {teacher.fingerprint}) than that of the run ({context.run_teacher}): "
            "the function that builds it draws weights, or a file was changed while the run went on"
        )
        raise TeacherError(Problem(where, what, "the same weights whenever it is built, as from a file"))
    if differs := what_differs(context.teacher_answers, teacher.answers):
        raise TeacherError(Problem(where, differs, "the teacher that the run began with"))


def named_costs(config: StudyConfig) -> list[str]:
    """Return the costs a study reports: macs, params, and every one that it names, in a fixed order."""
    named = {"macs", "params", *config.costs, *config.objectives, *config.bounded}
    return sorted(named - {ACCURACY.name}, key=lambda name: (name not in ("macs", "params"), name))


class Curve:
    """Called at each epoch's end: notes the validation accuracy after those that are to be looked at.

    `bfloat16`: computed so, as the score at the end of a training that is. `progress` is told the share of the
    `epochs` that is done.
    """

    def __init__(
        self,
        bench: Bench,
        module: nn.Module,
        looks: tuple[int, ...],
        *,
        bfloat16: bool,
        epochs: int,
        progress: Callable[[float], None],
    ):
        self._bench = bench
        self._bfloat16 = bfloat16
        self._module = module
        self._looks = looks
        self.points: list[tuple[int, float]] = []
        self._epochs, self._done = epochs, 0
        self._progress = progress

    def __call__(self, record: EpochRecord) -> None:
        """Take in that an epoch has ended."""
        self._done += 1
        self._progress(min(self._done / self._epochs, 1.0))
        if record.epoch in self._looks:
            bench = self._bench
            network = Normalised(self._module, bench.data.channel_mean, bench.data.channel_std).to(bench.device)
            self.points.append((record.epoch, accuracy(network, bench.validation, bfloat16=self._bfloat16)))
