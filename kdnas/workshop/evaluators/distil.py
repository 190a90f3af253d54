"""Distillation: students trained briefly with their teacher, from any of three starts.

A student begins with random weights, with weights inherited from its teacher, or with those of the run's supernet, and
may be scored as it begins, without training.

A student that climbs the rungs of a search trains in legs: each rung's score is the end of a whole learning-rate
schedule, since a score in the middle of one ranks students badly, and the next leg begins from its weights with a
schedule of its own, a warm restart (Loshchilov and Hutter, "SGDR", ICLR 2017).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn

from kdnas.checksums import file_sha256
from kdnas.core.arch import Arch, Scalar
from kdnas.core.measurement import Calibration, Measurement, Price
from kdnas.core.objective import Quantity, breaches
from kdnas.core.seeds import derive_seed
from kdnas.core.space import SearchSpace
from kdnas.core.task import TaskSpec
from kdnas.core.words import progress_bar
from kdnas.errors import ConfigError, Problem, RunError, RunFolderError, TeacherError, TrialError
from kdnas.nn.attention import attention_layers
from kdnas.nn.taps import Output, example_inputs
from kdnas.nn.teacher import Teacher, Teaching, fingerprints_of
from kdnas.nn.tracing import fvcore_macs, traced_macs
from kdnas.nn.weights import save_weights
from kdnas.record.lock import Findings, SupernetRecord, TeacherReport
from kdnas.record.records import Result, TrialRecord
from kdnas.students.derived import Derived
from kdnas.study.config import BLOCKS
from kdnas.study.spaces import arch_of
from kdnas.study.tuning import recipes_to_try
from kdnas.study.updates import updates_in_words
from kdnas.training.batches import Batches
from kdnas.training.checkpoint import discard_damaged, epochs_done
from kdnas.training.evaluation import evaluation_batch
from kdnas.training.loop import Course, EpochRecord, Pupil, Trained, batches_key, joined, train
from kdnas.training.loss import asked_of, needs_of
from kdnas.training.numerics import computing, in_bfloat16
from kdnas.training.packing import Packing, choose_size, measured_rate
from kdnas.training.recipe import Recipe
from kdnas.training.teacher_cache import TeacherCache, drawing_error, truncation_error
from kdnas.training.teacher_outputs import plan_of, views_key, why_live
from kdnas.workshop.block_library import open_library
from kdnas.workshop.evaluators import EVALUATORS, Evaluator, EvaluatorContext, attempted, names
from kdnas.workshop.export_check import check_exports
from kdnas.workshop.jobs import Before, Job, Way
from kdnas.workshop.latency_table import TablePrices, learn_tables
from kdnas.workshop.loss_check import check_losses, check_recipes
from kdnas.workshop.opening import Sources, Workshop
from kdnas.workshop.shrinking import cut_for
from kdnas.workshop.supernets import RunSupernet, SharedWeights, check_supernet
from kdnas.workshop.teacher_anatomy import anatomy_of, in_words
from kdnas.workshop.teacher_check import report_teacher

_TRUNCATED = 256
"""Validation predictions that show what keeping a few logits loses."""
_MUCH = 100 << 20
"""Bytes on the disk from which on they are reported."""
_DRAWS = 31
"""Random students whose median one stands for the space."""
_STEPS_TIMED = 64
"""Steps in each of the two epochs that time a number of students."""


class _Curve:
    """Called at each epoch's end: notes the validation score after those that are to be looked at.

    `progress` is given the share of the `epochs` that is done.
    """

    def __init__(
        self,
        workshop: Workshop,
        module: nn.Module,
        looks: tuple[int, ...],
        *,
        epochs: int,
        progress: Callable[[float], None],
    ):
        self._workshop = workshop
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
            self.points.append((record.epoch, self._workshop.validation_score(self._module)))


@dataclass(frozen=True)
class _Begun:
    """A job whose student is built and measured: its result so far is `infeasible` where it is refused."""

    job: Job
    module: nn.Module
    curve: _Curve
    result: Result


@dataclass(frozen=True)
class _Part:
    """A part of a job's training that is a training of its own: all of it, or one leg."""

    epochs: int
    view_seed: int
    checkpoint: Path | None = None
    begin_from: Path | None = None


@EVALUATORS.register
class Distil(Evaluator):
    """Trains each student briefly with the teacher: from random, inherited or shared weights, or not at all."""

    needs = ("data", "family")
    continues = True

    def __init__(self, context: EvaluatorContext):
        super().__init__(context)
        config = context.config
        self.workshop = Workshop(
            Sources.of_study(config, context.space, context.folder),
            data_root=context.data_root,
            cache=context.cache,
            device=torch.device(context.device),
            made_on=context.made_on,
            notify=context.notify,
            store=context.store,
        ).opened()
        self._mended: list[str] = []
        self.teacher_cache = TeacherCache(
            context.cache / "teacher_outputs",
            top_k=config.distillation.teacher_draws or config.distillation.teacher_top_k,
            drawn=config.distillation.teacher_draws is not None,
            on_fill=lambda view, part, parts: self.notify(
                f"keeping the teacher's outputs on view {view + 1}  {progress_bar(part / (parts or 1))}  {part}/{parts}"
            ),
            on_damage=self._mended.append,
            store=context.store,
        )
        if "inherited" in config.starts and self.workshop.family.ancestor() is None:
            of = "there is no teacher that" if (first := self.workshop.teacher) is None else f"the teacher {first.name}"
            what = f"{of} has no weights for students of {self.space.family}"
            raise ConfigError(Problem("start", what, f"random, or a teacher of the family {self.space.family}"))
        if config.shares_weights:
            _ = self.run_supernet  # refused where the space has none
        self.calibrate(context.calibrations)
        if context.made_on.reader == "worker":
            self._refuse_unlike_device()

    def _refuse_unlike_device(self) -> None:
        """Raise ConfigError where this machine's measurements are not comparable with the run's."""
        calibrated = [(name, self.calibrations[name]) for name in self._decisive if name in self.calibrations]
        costs = self.workshop.measured_costs
        unlike = [(name, costs[name].unlike(calibration)) for name, calibration in calibrated if name in costs]
        if problems := [Problem(f"costs.{name}", words, "the run's own device") for name, words in unlike if words]:
            raise ConfigError(problems)

    @functools.cached_property
    def run_supernet(self) -> RunSupernet:
        """What trains and loads the run's supernet."""
        return RunSupernet(self.context.files, self.context.config, self.workshop)

    @functools.cached_property
    def shared(self) -> SharedWeights:
        """The trained supernet. Raises RunFolderError where it is not that of the run's lock file."""
        if self.supernet is None:
            raise RunFolderError(f"{self.context.folder} has no trained supernet yet: `kdnas search` trains it")
        return self.run_supernet.load(self.supernet.fingerprint)

    def keep(self) -> None:
        """Write down what the family has found out, and the teacher that was trained for this study."""
        self.workshop.keep()

    def prepare(self) -> SupernetRecord | None:
        """Train the run's supernet and make its block library, or go on where that was stopped; check what is done."""
        if self.supernet is not None:
            check_supernet(self.context.folder, self.supernet.fingerprint)
        elif self.context.config.shares_weights:
            self.supernet = self.run_supernet.prepare(teacher_cache=self.teacher_cache, notify=self.notify)
        config = self.context.config
        if config.blocks is not None and config.sampler.type == BLOCKS:
            self.library = open_library(
                self.context.folder, config.blocks, self.workshop, seed=config.seed, notify=self.notify
            )
        return self.supernet

    @property
    def _decisive(self) -> set[str]:
        """What must be measured to decide on a trial: no more than finalists need, and nothing that a table prices."""
        config = self.context.config
        return {*config.objectives, *config.bounded} - self._table_prices.names - {*self._completed}

    @property
    def _completed(self) -> list[str]:
        """The objectives that are shares of texts completed."""
        return [one.name for one in self.context.config.completed]

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """The scores of the task, the completions that are objectives, and the costs that the study names."""
        completed = [one.quantity for one in self.context.config.completed]
        costs = [cost.quantity for cost in self.workshop.costs.values()]
        return names([*self.workshop.task.spec.scores, *completed, *costs])

    @property
    def description(self) -> dict[str, str]:
        """The samples and the teacher."""
        workshop, task = self.workshop, self.workshop.data.task
        return {
            task.samples: f"{len(workshop.train_indices):,} to train, {len(workshop.validation_indices):,} to score, "
            f"{len(workshop.data.test):,} to test; {_sizes(task)}",
            **({"data_notes": "; ".join(workshop.data_notes)} if workshop.data_notes else {}),
            "teacher_opened": ", ".join(teacher.name for teacher in workshop.teachers.values()) or "none",
            "updates": updates_in_words(self.context.config, len(workshop.train_indices)),
        }

    @property
    def cutting(self) -> dict[str, list[str]]:
        """What students are cut along, and what of their teacher stays whole and why."""
        family = self.workshop.family
        return in_words(anatomy_of(family)) if isinstance(family, Derived) else {}

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the data, of the teachers, and of what the family has found out."""
        workshop = self.workshop
        of_data = {"data": workshop.data.fingerprint}
        return {**of_data, **fingerprints_of(workshop.teachers), **workshop.family.fingerprints}

    @property
    def teacher_answers(self) -> tuple[float, ...]:
        """What the teacher answers to a few fixed samples."""
        return () if self.workshop.teacher is None else self.workshop.teacher.answers

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
        """Check and measure the teachers, and calibrate the measured costs. Raises TeacherError."""
        workshop = self.workshop
        config, space, notify = self.context.config, self.space, self.context.notify
        reports = self._reports()
        teacher = reports.pop(config.teacher_name, None)
        calibrated = {name: cost.calibrate(workshop.data.task) for name, cost in workshop.measured_costs.items()}
        self.calibrate(
            learn_tables(workshop.costs, space, workshop.family, calibrated, seed=config.seed, notify=notify)
        )
        if teacher is not None and workshop.teacher is not None:
            costs = self._costs_of(workshop.teacher, teacher)
            teacher = dataclasses.replace(teacher, values={**teacher.values, **costs})
        chances = {name: fmean(item.chance for item in workshop.completions[name]) for name in self._completed}
        chances |= workshop.worst_scores()
        worst = chances.pop(workshop.task.spec.score.name)
        return Findings(worst, workshop.describe_data(), teacher, self.calibrations, reports, chances)

    def _costs_of(self, teacher: Teacher, report: TeacherReport) -> dict[str, float]:
        """Return the study's costs of a teacher, and what it completes."""
        workshop = self.workshop
        whole = Price(round(report.values["macs"]), round(report.values["params"]))
        return {
            **workshop.cheap_costs(whole),
            **{
                name: cost.measure(teacher.module, teacher.given(workshop.data).task, self.calibrations[name]).value
                for name, cost in workshop.measured_costs.items()
            },
            **workshop.completed(teacher.module, self._completed),
        }

    def _reports(self) -> dict[str, TeacherReport]:
        """Return the teachers by name, checked and measured. Raises TeacherError."""
        workshop, config, notify = self.workshop, self.context.config, self.context.notify
        if workshop.teacher is None:
            return {}
        if workshop.teacher.outputs == "rules":
            what = "rules know no label by themselves: the first teacher is one that does"
            raise TeacherError(Problem(f"teachers.{config.teacher_name}", what))
        notify("measuring the teacher" if len(workshop.teachers) == 1 else "measuring the teachers")
        with computing(config.training, workshop.device):
            reports = {
                name: report_teacher(
                    teacher,
                    workshop.data,
                    workshop.validation_indices,
                    config.training,
                    device=workshop.device,
                    notify=notify,
                )
                for name, teacher in workshop.teachers.items()
            }
        return {
            name: dataclasses.replace(report, notes=(*report.notes, *self._teacher_cache_notes(name)))
            for name, report in reports.items()
        }

    def try_out(self, students: Mapping[str, Arch]) -> None:
        """Try all losses of the study on the teachers and these students, and whether they have the wanted exports.

        Raises ConfigError where a loss cannot be computed, and where none of them has an export; one that only some
        have is reported.
        """
        workshop = self.workshop
        with torch.random.fork_rng(devices=[]):
            built = {name: workshop.build(arch) for name, arch in students.items()}
        check_recipes(recipes_to_try(self.context.config), workshop, built)
        check_exports(self.context.config.export.formats, workshop)

    def check_recipe(self, recipe: Recipe, arch: Arch) -> None:
        """Try every loss of `recipe` on the teachers and on the student `arch`. Raises ConfigError."""
        workshop = self.workshop
        with torch.random.fork_rng(devices=[]):
            built = {f"the student {arch.arch_id}": workshop.build(arch)}
        check_losses(recipe, workshop.teachers, built, workshop.data, device=workshop.device)

    def _teacher_cache_notes(self, name: str) -> list[str]:
        """Return what the user should know of how the outputs of a teacher are kept."""
        asked = asked_of(self.context.config.distillation, name, self.workshop.teachers)
        if not asked.losses:
            return []
        samples = len(self.workshop.train_indices) * self.workshop.data.task.runs
        if live := why_live(asked, self.workshop.teacher_shapes(name), samples):
            return [f"the teacher runs on every batch: {live}"]
        return [*self._kept_notes(name, needs_of(asked)), *self._truncation_notes(self.workshop.teachers[name])]

    def _kept_notes(self, name: str, needs: frozenset[Output]) -> list[str]:
        """Return what keeping a teacher's outputs takes, where that is much."""
        workshop, config = self.workshop, self.context.config
        training = config.training
        teacher = workshop.teachers[name]
        plan = plan_of(teacher, workshop.train, training, config.seed)
        key = views_key(
            teacher,
            workshop.teacher_shapes(name),
            plan,
            needs=needs,
            bfloat16=in_bfloat16(training, workshop.device),
            top_k=self.teacher_cache.top_k,
            drawn=self.teacher_cache.drawn,
        )
        if key is None:
            return []
        if lacks := self.teacher_cache.lacks_room(key):
            fewer = "teacher_draws or teacher_top_k keeps fewer"
            return [f"the teacher runs on every batch: its answers would take {lacks}; {fewer}"]
        if key.view_bytes < _MUCH:
            return []
        views = "" if workshop.task.varies(training.augmentation) else ", all views being the same"
        return [f"its answers are kept: {key.view_bytes / 2**30:,.3g} GiB a view{views}"]

    def _truncation_notes(self, teacher: Teacher) -> list[str]:
        """Return what is lost where only the largest of a teacher's logits are kept, or some that are drawn."""
        workshop, kept, drawn = self.workshop, self.teacher_cache.top_k, self.teacher_cache.drawn
        if kept is None or (kept >= workshop.data.task.outputs and not drawn):
            return []
        places = workshop.validation_indices[: max(1, _TRUNCATED // workshop.task.spec.rows)]
        few = Batches(teacher.given(workshop.data), places, device=workshop.device)
        with torch.no_grad():
            size = evaluation_batch(workshop.task.spec, workshop.device)
            answers = [teacher.module(*batch.inputs) for batch in few.ordered(batch_size=size)]
        logits = torch.cat(answers).flatten(0, -2).cpu()
        if drawn:
            share, different = drawing_error(logits, kept)
            return [
                f"{kept} draws of each of its answers over {logits.shape[1]:,} are kept, {different:.3g} different "
                f"ones: right on average, so kd has no bias; one answer has {100 * share:.2g} % of its mass elsewhere"
            ]
        lost = truncation_error(logits, kept)
        return [f"{kept} of its {logits.shape[1]} logits are kept, which loses {lost:.2g} nats at temperature 1"]

    def measure(self, arch: Arch) -> dict[str, Measurement]:
        """Return the measured costs of `arch`, built anew."""
        return self.workshop.measure(self.workshop.build(arch), self.calibrations, self.measured)

    def __call__(self, job: Job) -> Result:
        """Measure, refuse, train or merely score the student of a job."""
        (outcome,) = self.together([job])
        if isinstance(outcome, TrialError):
            raise outcome
        return outcome

    def together(self, jobs: Sequence[Job]) -> list[Result | TrialError]:
        """Measure or refuse the jobs' students one by one, and train at once those that take the same batches."""
        every = [attempted(functools.partial(self._measured_or_begun, job)) for job in jobs]
        going = {place: one for place, one in enumerate(every) if isinstance(one, _Begun) and not one.result.infeasible}
        trained = self._train(going)

        def outcome(place: int, one: Result | _Begun | TrialError) -> Result | TrialError:
            if isinstance(one, TrialError | Result):
                return one
            if place not in trained:
                return one.result
            ended = trained[place]
            return ended if isinstance(ended, TrialError) else attempted(lambda: self._conclude(one, ended))

        return [outcome(place, one) for place, one in enumerate(every)]

    def is_part(self, arch: Arch, larger: Arch) -> bool:
        """Return whether a student of `arch` can be cut out of one of `larger`."""
        return self.workshop.family.is_part(arch, larger)

    def build(self, job: Job) -> nn.Module:
        """Return the student as it begins, on the workshop's device. Raises RunFolderError where weights are lost."""
        if job.larger is not None:
            trained = self.context.files.have(job.larger.checkpoint)
            return self.workshop.cut_on(job.arch, job.larger.arch, trained, job.init_seed)
        module = self.workshop.begin(job.arch, job.start, job.init_seed)
        if job.start == "supernet" and job.trains:
            module.load_state_dict(self.shared.cut(job.arch).state_dict())
        return module

    def _measured_or_begun(self, job: Job) -> Result | _Begun:
        return Result({}, self.measure(job.arch)) if job.kind == "measure" else self._begin(job)

    def _begin(self, job: Job) -> _Begun:
        """Return the built student of `job`, measured, and whether it is refused."""
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
        epochs = job.legs[-1].epochs if job.legs else job.recipe.training.epochs
        return _Begun(job, module, _Curve(workshop, module, job.looks, epochs=epochs, progress=self.progress), result)

    def _conclude(self, begun: _Begun, trained: Trained) -> Result:
        """Return the result of a student that has been trained."""
        job, workshop = begun.job, self.workshop
        score, tested = workshop.task.spec.score.name, dict[str, float]()
        if trained.score is None or not np.isfinite(trained.score):
            raise TrialError(f"the validation score is {trained.score}")
        completed = dict[str, float]()
        if job.test or self._completed:
            with computing(job.recipe.training, workshop.device):
                network = workshop.entered(trained.network).eval()
                tested = workshop.test_scores(network) if job.test else {}
                completed = tested if job.test else workshop.completed(network, self._completed)
        checkpoint = None if job.checkpoint is None else self.context.folder / job.checkpoint
        if job.checkpoint is not None and checkpoint is not None:
            save_weights(trained.network, checkpoint)
            self.context.files.share(job.checkpoint)
        return dataclasses.replace(
            begun.result,
            values={
                **begun.result.values,
                score: trained.score,
                **trained.by_task,
                **{name: completed[name] for name in self._completed},
            },
            train_seconds=trained.train_seconds,
            teacher_seconds=trained.teacher_seconds,
            profile={**begun.result.profile, **trained.phases},
            test=tested.get(score),
            further={name: value for name, value in tested.items() if name != score},
            checkpoint=job.checkpoint or "",
            sha256="" if checkpoint is None else file_sha256(checkpoint),
            curve=(*begun.curve.points, (job.fidelity.epochs, trained.score)) if job.looks else (),
            notes=(*self._take_mended(), *trained.notes),
            went="" if trained.fidelity.route == job.fidelity.route else trained.fidelity.route,
        )

    def _train(self, begun: Mapping[int, _Begun]) -> dict[int, Trained | TrialError]:
        """Return the students trained: at once those that take the same batches, whatever legs they go through."""
        outcomes: dict[int, Trained | TrialError] = {}
        groups: dict[object, list[int]] = {}
        for place, one in begun.items():
            if one.job.way is not None:
                by_route = self._progressive if one.job.way.is_progressive else self._taught_on_the_way
                outcomes[place] = attempted(functools.partial(by_route, one, one.job.way))
            elif one.job.trains:
                parts = tuple((part.epochs, part.view_seed) for part in self._parts(one.job))
                groups.setdefault((parts, batches_key(one.job.recipe)), []).append(place)
            else:
                outcomes[place] = attempted(functools.partial(self._as_cut, one))
        for places in groups.values():
            outcomes |= zip(places, self._train_together([begun[place] for place in places]), strict=True)
        return outcomes

    def _as_cut(self, begun: _Begun) -> Trained:
        """Return a student as it begins, with its score: no training."""
        job, network, began = begun.job, begun.module, time.perf_counter()
        by_task: Mapping[str, float] = {}
        if job.start == "supernet":
            score = self.shared.score(job.arch)
        else:
            score, by_task = self.workshop.validation_scores(network)
        seconds = time.perf_counter() - began
        if job.start == "supernet" and (job.test or job.checkpoint or self._completed):
            network = self.shared.cut(job.arch)
        return Trained(network, score, (), seconds, 0.0, job.fidelity, phases={"evaluation": seconds}, by_task=by_task)

    def _taught_on_the_way(self, begun: _Begun, way: Way) -> Trained:
        """Return a student that is taught by what is trained before it, each network by the one before.

        A network stands in for all teachers; a generation of the student begins at other random weights than it. Raises
        TrialError.
        """
        workshop, job, teaching = self.workshop, begun.job, None
        done: list[Trained] = []
        for place, step in enumerate((*way.before, Before(job.arch, way.epochs))):
            last = place == len(way.before)
            seed = job.init_seed if last else derive_seed(job.init_seed, "before", place, step.arch.arch_id)
            student = begun if last else dataclasses.replace(begun, module=workshop.begin(step.arch, job.start, seed))
            part = _Part(step.epochs, job.view_seed if last else derive_seed(job.view_seed, "before", place))
            own = dataclasses.replace(job, arch=step.arch, init_seed=seed)
            (trained,) = self._train_part([dataclasses.replace(student, job=own)], [part], teaching, last=last)
            if isinstance(trained, TrialError):
                raise trained
            done.append(trained)
            if not last:
                teacher = workshop.as_teacher(f"network {place + 1} before {job.arch.arch_id}", trained.network)
                teaching = dict.fromkeys(workshop.teachers, teacher)
        return joined(done, job.fidelity if way.before else job.fidelity.directly)

    def _progressive(self, begun: _Begun, way: Way) -> Trained:
        """Return a student cut out of a supernet of its own, then trained for the epochs left to it.

        One that no supernet holds is trained directly, which is noted. Raises TrialError.
        """
        job, went = begun.job, begun.job.fidelity
        try:
            network, seconds = cut_for(self.workshop, job, way)
        except ConfigError as error:
            self._mended.append(f"student {job.arch.arch_id} is trained directly: {error}")
            seconds, went, (trained,) = 0.0, job.fidelity.directly, self._train_together([begun])
        else:
            begun.module.load_state_dict(network.state_dict())
            (trained,) = self._train_part([begun], [_Part(way.epochs, job.view_seed)], last=True)
        if isinstance(trained, TrialError):
            raise trained
        return dataclasses.replace(trained, train_seconds=trained.train_seconds + seconds, fidelity=went)

    def _train_part(
        self, students: Sequence[_Begun], parts: Sequence[_Part], teaching: Teaching = None, *, last: bool
    ) -> list[Trained | TrialError]:
        """Return what came of one part of trainings that go together; `teaching` None: the study's teachers."""
        workshop, training = self.workshop, students[0].job.recipe.training
        course = Course(
            workshop.data,
            workshop.share(training.data_fraction, training.proxy),
            workshop.validation if last else None,
            teaching or workshop.teachers,
            parts[0].view_seed,
            workshop.device,
            None if teaching else self.teacher_cache,
        )
        return train(course, [self._pupil(student, part) for student, part in zip(students, parts, strict=True)])

    def _train_together(self, students: Sequence[_Begun]) -> list[Trained | TrialError]:
        """Return the students trained at once, part by part; their jobs have parts of the same epochs and views."""
        parts = [self._parts(student.job) for student in students]
        done: list[list[Trained]] = [[] for _ in students]
        failed: dict[int, TrialError] = {}
        for index in range(len(parts[0])):
            going = [place for place in range(len(students)) if place not in failed]
            here = [parts[place][index] for place in going]
            outcomes = self._train_part([students[place] for place in going], here, last=index == len(parts[0]) - 1)
            for place, outcome in zip(going, outcomes, strict=True):
                if isinstance(outcome, TrialError):
                    failed[place] = outcome
                else:
                    done[place].append(outcome)
                    if (checkpoint := parts[place][index].checkpoint) is not None:
                        self.context.files.share(str(checkpoint.relative_to(self.context.folder)))
        return [
            failed[place] if place in failed else joined(done[place], student.job.fidelity)
            for place, student in enumerate(students)
        ]

    def _pupil(self, student: _Begun, part: _Part) -> Pupil:
        job = student.job
        training = job.recipe.training.model_copy(update={"epochs": part.epochs})
        recipe = job.recipe.model_copy(update={"training": training})
        peers = self.workshop.peers(job.arch, recipe.distillation, job.start, job.init_seed)
        return Pupil(student.module, recipe, job.init_seed, student.curve, part.checkpoint, part.begin_from, peers)

    def _parts(self, job: Job) -> list[_Part]:
        """Return what is to be trained: legs that are still there from an earlier job are not repeated.

        The score is the same whichever they are: each leg is a function of the one before it.
        """
        if not job.legs:
            return [_Part(job.recipe.training.epochs, job.view_seed)]
        paths = [self.context.files.have(leg.checkpoint) for leg in job.legs]
        damaged = [words for path in paths if (words := discard_damaged(path))]
        self._mended += [f"{words}: its leg is trained anew" for words in damaged]
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

    def _take_mended(self) -> tuple[str, ...]:
        """Return what has been found damaged since the last call, and was made anew."""
        taken = tuple(dict.fromkeys(self._mended))
        self._mended.clear()
        return taken

    def at_once(self) -> Packing:
        """Return how many students of the space's median MACs pay on this device; one, unmeasured, on a CPU."""
        workshop, config = self.workshop, self.context.config
        if workshop.device.type != "cuda":
            return Packing(1)
        draws = np.random.default_rng(derive_seed(config.seed, "at once"))
        drawn = [self.arch(self.space.random(draws)) for _ in range(_DRAWS)]
        archs = sorted(drawn, key=lambda arch: self.price(arch)["macs"])
        few = workshop.train_indices[: _STEPS_TIMED * config.training.batch_size]
        train = workshop.batches(few)

        def rate(size: int) -> float:
            median = archs[_DRAWS // 2]
            return measured_rate(
                lambda: workshop.build(median), size, train, config.recipe, data=workshop.data, device=workshop.device
            )

        return choose_size(rate)

    def check(self, trial: TrialRecord) -> None:
        """Raise RunError where torch's counter or fvcore's counts other MACs than the closed form."""
        module = self.workshop.family.build(trial.arch).eval()
        example = example_inputs(self.workshop.data.task, torch.device("cpu"), 1)
        counts = {"torch": traced_macs(module, *example)}
        if not attention_layers(module):  # fvcore does not count fused attention
            counts["fvcore"] = fvcore_macs(module, *example)
        for who, count in counts.items():
            if count != trial.values["macs"]:
                closed = f"{trial.values['macs']:g} in closed form"
                raise RunError(f"trial {trial.number}: {count} MACs counted by {who}, {closed}")

    def teacher_test_score(self) -> float | None:
        """Return the teacher's score on the test split, scored as the front has been."""
        return self._teacher_tested.get(self.workshop.task.spec.score.name)

    def teacher_further(self) -> Mapping[str, float]:
        """Return what else is known of how good the teacher is on the test split, by name."""
        score = self.workshop.task.spec.score.name
        return {name: value for name, value in self._teacher_tested.items() if name != score}

    @functools.cached_property
    def _teacher_tested(self) -> dict[str, float]:
        workshop, teacher = self.workshop, self.workshop.teacher
        if teacher is None:
            return {}
        self.context.notify("scoring the teacher on the test split")
        with computing(self.context.config.training, workshop.device):
            own = teacher.given(workshop.data)
            return workshop.test_scores(teacher.module, None if own is workshop.data else own)


def _sizes(task: TaskSpec) -> str:
    """Return in words what a sample is given as and what is answered."""
    size = "x".join(map(str, task.inputs[0].shape))
    if task.inputs[0].kind == "pixels":
        return f"{size}, {task.outputs} classes"
    named = f"lists of {task.candidates}, of each its score" if task.candidates else f"{task.outputs} classes"
    answers = named if task.rows == 1 else "the next one is predicted"
    given = "numbers" if task.inputs[0].kind == "floats" else f"tokens of {task.inputs[0].levels:,}"
    return f"{size} {given}, {answers}"
