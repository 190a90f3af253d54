"""What every evaluator shares that builds and trains its students."""

from __future__ import annotations

import dataclasses
import functools
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.measurement import Calibration, Measurement
from kdnas.core.objective import ACCURACY, Quantity, breaches
from kdnas.core.space import SearchSpace
from kdnas.errors import RunError, TrialError
from kdnas.nn.tracing import fvcore_macs, traced_macs
from kdnas.nn.weights import save_weights
from kdnas.record.lock import Findings
from kdnas.record.products import file_sha256
from kdnas.record.records import TrialRecord
from kdnas.study.spaces import arch_of
from kdnas.study.updates import updates_in_words
from kdnas.training.evaluation import evaluate
from kdnas.training.loop import EpochRecord, Trained
from kdnas.training.numerics import computing, in_bfloat16
from kdnas.training.teacher_cache import TeacherCache, truncation_error
from kdnas.training.teacher_outputs import why_live
from kdnas.workshop.evaluators import (
    Evaluator,
    EvaluatorContext,
    attempted,
    names,
)
from kdnas.workshop.jobs import Job, Result
from kdnas.workshop.latency_table import TablePrices, learn_tables
from kdnas.workshop.loss_check import check_losses
from kdnas.workshop.opening import Sources, Workshop
from kdnas.workshop.teacher_check import report_teacher, teacher_test_accuracy

_BAR = 20
"""Characters of a progress bar."""
_TRUNCATED = 256
"""Validation images that show what keeping a few logits loses."""


class Curve:
    """Called at each epoch's end: notes the validation accuracy after those that are to be looked at.

    `bfloat16`: computed so, as the score at the end of a training that is. `progress` is told the share of the
    `epochs` that is done.
    """

    def __init__(
        self,
        workshop: Workshop,
        module: nn.Module,
        looks: tuple[int, ...],
        *,
        bfloat16: bool,
        epochs: int,
        progress: Callable[[float], None],
    ):
        self._workshop = workshop
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
            network = self._workshop.entered(self._module)
            self.points.append((record.epoch, evaluate(network, self._workshop.validation, bfloat16=self._bfloat16)))


@dataclass(frozen=True)
class Begun:
    """A job whose student is built and measured: its result so far is `infeasible` where it is refused."""

    job: Job
    module: nn.Module
    curve: Curve
    result: Result

    @property
    def refused(self) -> bool:
        """Whether the student is not to be trained."""
        return bool(self.result.infeasible)


class TrainingEvaluator(Evaluator):
    """Builds each student, measures it, and has `train` train it on a workshop."""

    needs = ("data", "teacher", "family")
    workshop: Workshop
    teacher_cache: TeacherCache

    def __init__(self, context: EvaluatorContext):
        super().__init__(context)
        beside = context.beside
        if isinstance(beside, TrainingEvaluator):
            self.workshop, self.teacher_cache = beside.workshop, beside.teacher_cache
        else:
            self.workshop = Workshop(
                Sources.of_study(context.config, context.space),
                data_root=context.data_root,
                cache=context.cache,
                device=torch.device(context.device),
                made_on=context.made_on,
                say=context.say,
            ).opened()
            self.teacher_cache = TeacherCache(
                context.cache / "teacher_outputs",
                top_k=context.config.distillation.teacher_top_k,
                on_fill=lambda view, part, parts: self.say(_filling(view, part, parts)),
            )
        self.calibrate(context.calibrations)

    @abstractmethod
    def train(self, module: nn.Module, job: Job, on_epoch: Callable[[EpochRecord], None]) -> Trained:
        """Return `module` trained as `job` says, with its accuracy on the validation split.

        `on_epoch` is called after each epoch, with `module` as it is then.
        """

    @property
    def _decisive(self) -> set[str]:
        """What must be measured to decide on a trial: no more than finalists need, and nothing that a table prices."""
        config = self.context.config
        return {*config.objectives, *config.bounded} - self._table_prices.names

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """Accuracy and the costs that the study names."""
        return names([ACCURACY, *(cost.quantity for cost in self.workshop.costs.values())])

    @property
    def description(self) -> dict[str, str]:
        """The images and the teacher."""
        workshop, task = self.workshop, self.workshop.data.task
        return {
            "images": f"{len(workshop.train_indices):,} to train, {len(workshop.validation_indices):,} to score, "
            f"{len(workshop.data.test):,} to test; {'x'.join(map(str, task.image_shape))}, {task.outputs} classes",
            **({"data_notes": "; ".join(workshop.data_notes)} if workshop.data_notes else {}),
            "teacher_opened": workshop.teacher.name,
            "updates": updates_in_words(self.context.config, len(workshop.train_indices)),
        }

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the data and of the teacher."""
        return {"data": self.workshop.data.fingerprint, "teacher": self.workshop.teacher.fingerprint}

    @property
    def teacher_answers(self) -> tuple[float, ...]:
        """What the teacher says to a few fixed images."""
        return self.workshop.teacher.answers

    @property
    def space(self) -> SearchSpace:
        """The space as it is searched."""
        return self.workshop.space

    def arch(self, assignment: Mapping[str, Scalar]) -> Arch:
        """Return the arch that a full assignment stands for, as the family spells it."""
        return arch_of(self.space, assignment, self.workshop.family)

    def price(self, arch: Arch) -> dict[str, float]:
        """Return the closed-form costs of `arch`, and those that the run's latency table prices."""
        return self.workshop.price(arch) | self._table_prices(arch)

    def calibrate(self, calibrations: Mapping[str, Calibration]) -> None:
        """Measure and price by `calibrations` from now on."""
        super().calibrate(calibrations)
        self._table_prices = TablePrices(calibrations, self.workshop.family)

    def facts(self) -> Findings:
        """Check and measure the teacher, and calibrate the measured costs. Raises TeacherError."""
        workshop = self.workshop
        config, space, say = self.context.config, self.space, self.context.say
        say("measuring the teacher")
        with computing(config.training, workshop.device):
            teacher = report_teacher(
                workshop.teacher,
                workshop.data,
                workshop.validation_indices,
                device=workshop.device,
                bfloat16=in_bfloat16(config.training, workshop.device),
                say=say,
            )
        calibrated = {name: cost.calibrate(workshop.data.task) for name, cost in workshop.measured_costs.items()}
        self.calibrate(learn_tables(workshop.costs, space, workshop.family, calibrated, seed=config.seed, say=say))
        costs = {
            name: cost.measure(workshop.teacher.module, workshop.data.task, self.calibrations[name]).value
            for name, cost in workshop.measured_costs.items()
        }
        notes = (*teacher.notes, *self._teacher_cache_notes())
        teacher = dataclasses.replace(teacher, notes=notes, values={**teacher.values, **costs})
        return Findings(workshop.chance(), workshop.describe_data(), teacher, self.calibrations)

    def try_out(self, students: Mapping[str, Arch]) -> None:
        """Try every loss of the recipe on the teacher and these students. Raises ConfigError."""
        workshop = self.workshop
        with torch.random.fork_rng(devices=[]):
            built = {name: workshop.build(arch) for name, arch in students.items()}
        check_losses(self.context.config.recipe, workshop.teacher, built, workshop.data, device=workshop.device)

    def _teacher_cache_notes(self) -> list[str]:
        """Return what the user should know of how the teacher's outputs are kept."""
        distillation = self.context.config.distillation
        images = len(self.workshop.train_indices)
        if live := why_live(distillation, self.workshop.teacher_shapes, images):
            return [f"runs on every batch: {live}"]
        kept = distillation.teacher_top_k
        if kept is None or kept >= self.workshop.data.task.outputs:
            return []
        few = self.workshop.batches(self.workshop.validation_indices[:_TRUNCATED])
        with torch.no_grad():
            answers = [self.workshop.teacher.module(*batch.inputs) for batch in few.ordered(batch_size=_TRUNCATED)]
        logits = torch.cat(answers).flatten(0, -2).cpu()
        lost = truncation_error(logits, kept)
        return [f"{kept} of its {logits.shape[1]} logits are kept, which loses {lost:.2g} nats at temperature 1"]

    def measure(self, arch: Arch) -> dict[str, Measurement]:
        """Return the measured costs of `arch`, built anew."""
        return self.workshop.measure(self.workshop.build(arch), self.calibrations, self.measured)

    def __call__(self, job: Job) -> Result:
        """Measure, refuse or train the student of a job."""
        begun = self._begin(job)
        if begun.refused:
            return begun.result
        return self._conclude(begun, self.train(begun.module, begun.job, begun.curve))

    def together(self, jobs: Sequence[Job]) -> list[Result | TrialError]:
        """Measure or refuse the jobs' students one by one, and train the others at once where `train_all` can."""
        every = [attempted(functools.partial(self._begin, job)) for job in jobs]
        begun = [one for one in every if isinstance(one, Begun) and not one.refused]
        trained = dict(zip(map(id, begun), self.train_all(begun), strict=True))

        def outcome(one: Begun | TrialError) -> Result | TrialError:
            if isinstance(one, TrialError) or one.refused:
                return one if isinstance(one, TrialError) else one.result
            ended = trained[id(one)]
            return ended if isinstance(ended, TrialError) else attempted(lambda: self._conclude(one, ended))

        return [outcome(one) for one in every]

    def train_all(self, begun: Sequence[Begun]) -> list[Trained | TrialError]:
        """Return how each student trained; here one after the other."""
        return [attempted(functools.partial(self.train, one.module, one.job, one.curve)) for one in begun]

    def build(self, job: Job) -> nn.Module:
        """Return the student as its training begins, on the workshop's device; here at random, by the job's seed."""
        torch.manual_seed(job.init_seed)
        return self.workshop.build(job.arch)

    def _begin(self, job: Job) -> Begun:
        """Return the built student of `job`, measured, and whether it is to be trained."""
        workshop, began = self.workshop, time.perf_counter()
        module = self.build(job)
        measured = workshop.measure(module, self.calibrations, self._decisive) if job.measure else {}
        values = self.price(job.arch) | {name: measurement.value for name, measurement in measured.items()}
        broken = breaches(values, self.context.config.limits, known_only=True)
        result = Result(
            values,
            measured,
            profile={"build": time.perf_counter() - began},
            infeasible=f"breaks {'; '.join(broken)}" if broken else "",
        )
        curve = Curve(
            workshop,
            module,
            job.looks,
            bfloat16=in_bfloat16(job.recipe.training, workshop.device),
            epochs=job.legs[-1].epochs if job.legs else job.recipe.training.epochs,
            progress=self.progress,
        )
        return Begun(job, module, curve, result)

    def _conclude(self, begun: Begun, trained: Trained) -> Result:
        """Return the result of a student that has been trained."""
        job, workshop, tested = begun.job, self.workshop, None
        if trained.score is None or not np.isfinite(trained.score):
            raise TrialError(f"the validation accuracy is {trained.score}")
        if job.test:
            with computing(job.recipe.training, workshop.device):
                tested = workshop.test_score(trained.network)
        checkpoint = None if job.checkpoint is None else self.context.folder / job.checkpoint
        if checkpoint is not None:
            save_weights(trained.network, checkpoint)
        return dataclasses.replace(
            begun.result,
            values={**begun.result.values, ACCURACY.name: trained.score},
            train_seconds=trained.train_seconds,
            teacher_seconds=trained.teacher_seconds,
            profile={**begun.result.profile, **trained.phases},
            test=tested,
            checkpoint=job.checkpoint or "",
            sha256="" if checkpoint is None else file_sha256(checkpoint),
            curve=(*begun.curve.points, (job.fidelity.epochs, trained.score)) if job.looks else (),
            notes=tuple(trained.notes),
        )

    def check(self, trial: TrialRecord) -> None:
        """Raise RunError where torch's counter or fvcore's counts other MACs than the closed form."""
        module = self.workshop.family.build(trial.arch).eval()
        example = torch.zeros(1, *self.workshop.data.task.image_shape)
        counts = {"torch": traced_macs(module, example), "fvcore": fvcore_macs(module, example)}
        for who, count in counts.items():
            if count != trial.values["macs"]:
                closed = f"{trial.values['macs']:g} in closed form"
                raise RunError(f"trial {trial.number}: {count} MACs counted by {who}, {closed}")

    def teacher_test_accuracy(self) -> float | None:
        """Return the teacher's accuracy on the test split, scored as the front has been."""
        self.context.say("scoring the teacher on the test split")
        workshop, training = self.workshop, self.context.config.training
        with computing(training, workshop.device):
            return teacher_test_accuracy(
                workshop.teacher, workshop.data, device=workshop.device, bfloat16=in_bfloat16(training, workshop.device)
            )


def _filling(view: int, part: int, parts: int) -> str:
    """Return how far the teacher's outputs on a view are kept, as a bar."""
    done = round(_BAR * part / max(parts, 1))
    return f"keeping the teacher's outputs on view {view + 1}  {'█' * done}{'░' * (_BAR - done)}  {part}/{parts}"
