"""What the evaluators share that train a student by the recipe, beside its teacher.

A student that climbs the rungs of a search trains in legs: each rung's score is the end of a whole learning-rate
schedule, since accuracy in the middle of one ranks students badly, and the next leg begins from its weights with a
schedule of its own, a warm restart (Loshchilov and Hutter, "SGDR", ICLR 2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.seeds import derive_seed
from kdnas.errors import TrialError
from kdnas.training.checkpoint import epochs_done
from kdnas.training.loop import Course, EpochRecord, Pupil, Trained, batches_key, train
from kdnas.training.packing import Packing, choose_size, measured_rate
from kdnas.workshop.evaluators._training import Begun, TrainingEvaluator
from kdnas.workshop.jobs import Job

_DRAWS = 31
"""Random students whose median one stands for the space."""
_STEPS_TIMED = 64
"""Steps in each of the two epochs that time a number of students."""


@dataclass(frozen=True)
class _Part:
    """A part of a job's training that is a training of its own: all of it, or one leg."""

    epochs: int
    view_seed: int
    checkpoint: Path | None = None
    begin_from: Path | None = None


class DistillingEvaluator(TrainingEvaluator):
    """Trains each student beside the teacher, from what `build` gives it."""

    continues = True

    def train(self, module: nn.Module, job: Job, on_epoch: Callable[[EpochRecord], None]) -> Trained:
        """Return `module` trained by the job's recipe. Raises TrialError."""
        (outcome,) = self._train_together([(module, job, on_epoch)])
        if isinstance(outcome, TrialError):
            raise outcome
        return outcome

    def train_all(self, begun: Sequence[Begun]) -> list[Trained | TrialError]:
        """Return the students trained: at once those that see the same batches, whatever legs they go through."""
        groups: dict[object, list[int]] = {}
        for place, one in enumerate(begun):
            parts = tuple((part.epochs, part.view_seed) for part in self._parts(one.job))
            groups.setdefault((parts, batches_key(one.job.recipe)), []).append(place)
        outcomes: dict[int, Trained | TrialError] = {}
        for places in groups.values():
            students = [(begun[place].module, begun[place].job, begun[place].curve) for place in places]
            outcomes |= zip(places, self._train_together(students), strict=True)
        return [outcomes[place] for place in range(len(begun))]

    def _train_together(
        self, students: Sequence[tuple[nn.Module, Job, Callable[[EpochRecord], None]]]
    ) -> list[Trained | TrialError]:
        """Return the students trained at once, part by part; their jobs have parts of the same epochs and views."""
        workshop = self.workshop
        parts = [self._parts(job) for _, job, _ in students]
        train_on = self.workshop.share(students[0][1].recipe.training.data_fraction)
        done: list[list[Trained]] = [[] for _ in students]
        failed: dict[int, TrialError] = {}
        for index, part in enumerate(parts[0]):
            last = index == len(parts[0]) - 1
            course = Course(
                workshop.data,
                train_on,
                workshop.validation if last else None,
                workshop.teacher,
                part.view_seed,
                workshop.device,
                self.teacher_cache,
            )
            going = [place for place in range(len(students)) if place not in failed]
            pupils = [self._pupil(*students[place], parts[place][index]) for place in going]
            for place, outcome in zip(going, train(course, pupils), strict=True):
                if isinstance(outcome, TrialError):
                    failed[place] = outcome
                else:
                    done[place].append(outcome)
        return [
            failed[place] if place in failed else _whole(done[place], job.fidelity)
            for place, (_, job, _) in enumerate(students)
        ]

    @staticmethod
    def _pupil(module: nn.Module, job: Job, on_epoch: Callable[[EpochRecord], None], part: _Part) -> Pupil:
        training = job.recipe.training.model_copy(update={"epochs": part.epochs})
        recipe = job.recipe.model_copy(update={"training": training})
        return Pupil(module, recipe, job.init_seed, on_epoch, part.checkpoint, part.begin_from)

    def _parts(self, job: Job) -> list[_Part]:
        """Return what is to be trained: legs that are still there from an earlier job are not repeated.

        The score is the same whichever they are: each leg is a function of the one before it.
        """
        if not job.legs:
            return [_Part(job.recipe.training.epochs, job.view_seed)]
        paths = [self.context.folder / leg.checkpoint for leg in job.legs]
        whole = [epochs_done(path) == leg.epochs for path, leg in zip(paths, job.legs, strict=True)]
        first = max((index + 1 for index in range(len(paths) - 1) if whole[index]), default=0)
        return [
            _Part(
                job.legs[index].epochs,
                derive_seed(job.view_seed, "leg", index) if index else job.view_seed,
                paths[index],
                paths[index - 1] if index else None,
            )
            for index in range(first, len(paths))
        ]

    def at_once(self) -> Packing:
        """Return how many students of the space's median MACs pay on this device; one, unmeasured, on a CPU."""
        workshop, config = self.workshop, self.context.config
        if workshop.device.type != "cuda":
            return Packing(1)
        draws = np.random.default_rng(derive_seed(config.seed, "at once"))
        archs = sorted((self.arch(self.space.random(draws)) for _ in range(_DRAWS)), key=self._macs)
        few = workshop.train_indices[: _STEPS_TIMED * config.training.batch_size]
        train = workshop.batches(few)

        def rate(size: int) -> float:
            median = archs[_DRAWS // 2]
            return measured_rate(
                lambda: workshop.build(median), size, train, config.recipe, data=workshop.data, device=workshop.device
            )

        return choose_size(rate)

    def _macs(self, arch: Arch) -> float:
        return self.price(arch)["macs"]


def _whole(parts: Sequence[Trained], fidelity: Fidelity) -> Trained:
    """Return a training of several parts as one."""
    if len(parts) == 1:
        return dataclasses.replace(parts[0], fidelity=fidelity)
    return dataclasses.replace(
        parts[-1],
        train_seconds=sum(part.train_seconds for part in parts),
        teacher_seconds=sum(part.teacher_seconds for part in parts),
        fidelity=fidelity,
        graph_failure=next((part.graph_failure for part in parts if part.graph_failure is not None), None),
        phases={phase: sum(part.phases.get(phase, 0.0) for part in parts) for phase in parts[-1].phases},
        live_teacher=any(part.live_teacher for part in parts),
    )
