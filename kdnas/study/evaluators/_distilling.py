"""What the evaluators share that train a student by the recipe, beside its teacher.

A student that climbs the rungs of a search trains in legs: each rung's score is the end of a whole learning-rate
schedule, since accuracy in the middle of one ranks students badly, and the next leg begins from its weights with a
schedule of its own, a warm restart (Loshchilov and Hutter, "SGDR", ICLR 2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.seeds import derive_seed
from kdnas.errors import TrialError
from kdnas.study.evaluators._training import Begun, TrainingEvaluator
from kdnas.study.jobs import Job
from kdnas.training.checkpoint import epochs_done
from kdnas.training.distil import EpochRecord, Trained, distil
from kdnas.training.packing import Packing, choose_size, distil_together, measured_rate, share_batches

_DRAWS = 31
"""Random students whose median one stands for the space."""
_STEPS_TIMED = 64
"""Steps in each of the two epochs that time a number of students."""


class DistillingEvaluator(TrainingEvaluator):
    """Trains each student beside the teacher, from what `build` gives it."""

    continues = True

    def train(self, module: nn.Module, job: Job, on_epoch: Callable[[EpochRecord], None]) -> Trained:
        """Return `module` trained by the job's recipe."""
        if job.legs:
            return self._train_in_legs(module, job, on_epoch)
        bench = self.bench
        return distil(
            module,
            bench.teacher,
            self.training_images(job.recipe.training.data_fraction),
            bench.validation,
            job.recipe,
            data=bench.data,
            seed=job.init_seed,
            view_seed=job.view_seed,
            device=bench.device,
            on_epoch=on_epoch,
            teacher_cache=self.teacher_cache,
        )

    def train_all(self, begun: Sequence[Begun]) -> list[Trained | TrialError]:
        """Return the students trained at once on the batches that they share, else one after the other."""
        jobs = [one.job for one in begun]
        recipes = [job.recipe for job in jobs]
        if any(job.legs for job in jobs) or len({job.view_seed for job in jobs}) != 1 or not share_batches(recipes):
            return super().train_all(begun)
        bench = self.bench
        return distil_together(
            [one.module for one in begun],
            bench.teacher,
            self.training_images(recipes[0].training.data_fraction),
            bench.validation,
            recipes,
            data=bench.data,
            seeds=[job.init_seed for job in jobs],
            view_seed=jobs[0].view_seed,
            device=bench.device,
            on_epoch=[one.curve for one in begun],
            teacher_cache=self.teacher_cache,
        )

    def at_once(self) -> Packing:
        """Return how many students of the space's median MACs pay on this device; one, unmeasured, on a CPU."""
        bench, config = self.bench, self.context.config
        if bench.device.type != "cuda":
            return Packing(1)
        draws = np.random.default_rng(derive_seed(config.seed, "at once"))
        archs = sorted((self.arch(self.context.space.random(draws)) for _ in range(_DRAWS)), key=self._macs)
        few = bench.train_indices[: _STEPS_TIMED * config.training.batch_size]
        train = bench.batches(bench.data.train, few)

        def rate(size: int) -> float:
            median = archs[_DRAWS // 2]
            return measured_rate(
                lambda: bench.build(median), size, train, config.recipe, data=bench.data, device=bench.device
            )

        return choose_size(rate)

    def _macs(self, arch: Arch) -> float:
        return self.price(arch)["macs"]

    def _train_in_legs(self, module: nn.Module, job: Job, on_epoch: Callable[[EpochRecord], None]) -> Trained:
        """Return `module` at the end of the last leg, the legs that are still there from an earlier job not repeated.

        The score is the same whichever they are: each leg is a function of the one before it.
        """
        bench, training = self.bench, job.recipe.training
        paths = [self.context.folder / leg.checkpoint for leg in job.legs]
        whole = [epochs_done(path) == leg.epochs for path, leg in zip(paths, job.legs, strict=True)]
        first = max((index + 1 for index in range(len(paths) - 1) if whole[index]), default=0)
        legs: list[Trained] = []
        for index in range(first, len(paths)):
            update = {"epochs": job.legs[index].epochs}
            legs.append(
                distil(
                    module,
                    bench.teacher,
                    self.training_images(training.data_fraction),
                    bench.validation if index == len(paths) - 1 else None,
                    job.recipe.model_copy(update={"training": training.model_copy(update=update)}),
                    data=bench.data,
                    seed=job.init_seed,
                    view_seed=derive_seed(job.view_seed, "leg", index) if index else job.view_seed,
                    device=bench.device,
                    on_epoch=on_epoch,
                    checkpoint=paths[index],
                    begin_from=paths[index - 1] if index else None,
                    teacher_cache=self.teacher_cache,
                )
            )
        return dataclasses.replace(
            legs[-1],
            train_seconds=sum(leg.train_seconds for leg in legs),
            teacher_seconds=sum(leg.teacher_seconds for leg in legs),
            fidelity=job.fidelity,
            graph_failure=next((leg.graph_failure for leg in legs if leg.graph_failure is not None), None),
            phases={phase: sum(leg.phases.get(phase, 0.0) for leg in legs) for phase in legs[-1].phases},
            live_teacher=any(leg.live_teacher for leg in legs),
        )
