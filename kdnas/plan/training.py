"""Full training of one student by its train.yaml: resumable after any interruption, finished once.

A training is a list of steps: a plain one has a single step, a training plan may have more. The folder holds
`training.lock.yaml` (exactly what is being trained), `history.csv` (one row an epoch) and the checkpoint of the last
whole epoch while it runs, with a plan `plan.yaml` and a folder of each step instead, and at the end the student's files
and `result.json`, written last.

A step's own folder holds a checkpoint while it runs; afterwards `weights.safetensors` of the network that it gives, of
a supernet `shrinking.yaml` with the stages as they went, and `step.json`, written last: a finished step is not
repeated.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from kdnas.checksums import file_sha256
from kdnas.core.arch import Arch
from kdnas.core.card import CostRecord, MeanScore, StudentCard, TeacherCard, WeightsRecord
from kdnas.core.fidelity import Start
from kdnas.core.objective import Quantity
from kdnas.core.route import Corner
from kdnas.core.seeds import derive_seed
from kdnas.core.shrinking import ShrinkingRecord
from kdnas.core.words import counted
from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.machine import usable_cores
from kdnas.nn.weights import save_weights
from kdnas.plan.exporting import assemble, check_formats, data_card, had_formats, load_network, write_formats
from kdnas.plan.plan_file import (
    INHERITED,
    PLAN_FILE,
    RUN_SUPERNET,
    DistilStep,
    Step,
    SupernetStep,
    TrainingPlan,
    write_plan,
)
from kdnas.plan.train_file import TrainFile
from kdnas.plan.training_folder import (
    CHECKPOINT_FILE,
    GUARD_FILE,
    RESULT_FILE,
    FullTraining,
    claim,
    locked_training,
    read_history,
    read_result,
    write_history,
)
from kdnas.plan.training_ground import open_training
from kdnas.plugins import code_fingerprints
from kdnas.record.lock import fingerprint, scored
from kdnas.record.products import loss_of
from kdnas.record.run_folder import exclusively, write_text
from kdnas.students import sibling_family
from kdnas.study.config import ExportConfig
from kdnas.training.evaluation import evaluate
from kdnas.training.loop import EpochRecord, distil
from kdnas.training.numerics import computing
from kdnas.training.recipe import Recipe
from kdnas.training.supernet.shrinking_file import SHRINKING_FILE, read_shrinking, write_shrinking
from kdnas.training.supernet.training import Tick
from kdnas.version import __version__
from kdnas.workshop.opening import Workshop, cache_dir, resolve_device
from kdnas.workshop.shrinking import train_and_cut

_FEW_CORES = 2
"""More threads than one gain nothing on so many (`kdnas.training.numerics`)."""
_OUTSIDE = ("device", "provenance", "name", "teacher_answers", "preprocessing")
"""What of a train.yaml decides nothing of the student, or only checks what another line decides."""
DEFAULT_FORMATS = ExportConfig().formats
LARGER = "larger"
"""What a training begins from that is no plan's, where its student is cut out of a larger one."""
_WEIGHTS_FILE = "student.safetensors"
"""Most formats write it (`kdnas.exporters`)."""


@dataclass(frozen=True)
class Larger:
    """A trained student that another one is cut out of, and the file of its weights with that file's hash."""

    arch: Arch
    weights: Path
    sha256: str

    def identity(self) -> dict[str, str]:
        """Return what of it decides the training of another student."""
        return {"arch_id": self.arch.arch_id, "sha256": self.sha256}


def train_fully(
    file: TrainFile,
    out: Path,
    *,
    plan: TrainingPlan | None = None,
    larger: Larger | None = None,
    shared: Callable[[Workshop], nn.Module] | None = None,
    data_root: Path,
    cache: Path | None = None,
    device: str | None = None,
    run: Workshop | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    notify: Callable[[str], None] = lambda line: None,
) -> FullTraining:
    """Train the student of `file` in the folder `out` and return its result; continue where an earlier call stopped.

    `plan`, which has been checked against the file, is followed instead of the file's one plain training. A
    finished training is not repeated, but where its weights are lost; other lost files are written anew. `shared` gives
    the student as it is cut out of the run's supernet, where a plan begins from that. Without a plan, what is trained
    may be cut out of a `larger` student. `device` overrides the file's; `run` has the data and the teacher of the run
    that found the student. The test split is read once, at the end. Raises RunFolderError when `out` holds something
    else, DataError or TeacherError when data or teacher are not those of the file, TrialError when the loss is no
    longer finite.
    """
    check_formats(formats)
    hardware = resolve_device(device or file.device)
    file = file.settled(hardware, locked_training(out))
    claim(out, identity(file, plan) | ({} if larger is None else {"cut_from": larger.identity()}))
    with exclusively(out / GUARD_FILE, "kdnas train"), computing(file.training, hardware):
        done = read_result(out)
        lost = [] if done is None else done.lost
        if done is not None and not lost:
            return done
        for loss in lost:
            notify(f"{loss.path} {loss.words}")
        workshop = open_training(
            file, data_root=data_root, cache=cache or cache_dir(), device=device, run=run, notify=notify
        )
        if plan is None:
            length = counted(file.training.epochs, "epoch")
        else:
            check_samples(plan, workshop)
            write_plan(out / PLAN_FILE, plan)
            length = f"{counted(len(plan.steps), 'step')} worth {counted(plan.budget.epochs, 'epoch')}"
        notify(
            f"student {file.arch_id} of {file.name}: {length} on {len(workshop.train):,} samples, "
            f"{len(workshop.validation):,} held out, on {workshop.device}{_computed(file)}"
        )
        weights = out / _WEIGHTS_FILE
        if done is not None and _WEIGHTS_FILE in done.files and weights not in [loss.path for loss in lost]:
            network = load_network(file, workshop, weights).to(workshop.device)
            trained = StepResult(network, done.score, done.train_seconds)
            return _finish(file, plan, larger, out, workshop, trained, done.formats or formats, notify)
        if larger is not None:
            start: nn.Module | None = workshop.cut_on(file.student, larger.arch, larger.weights, file.seed)
        else:
            start = None if shared is None else shared(workshop)
        trained = _follow(file, plan, workshop, out, start, on_progress)
        return _finish(file, plan, larger, out, workshop, trained, formats, notify)


def _computed(file: TrainFile) -> str:
    """Return in words what the training computes with."""
    threads = file.training.threads
    if threads == "auto":
        return f" in {file.training.precision}"
    cores = usable_cores()
    hint = f" of {cores} cores; --threads uses more" if threads == 1 and cores > _FEW_CORES else ""
    return f" in {file.training.precision}, {counted(threads, 'thread')}{hint}"


def identity(file: TrainFile, plan: TrainingPlan | None = None) -> dict[str, Any]:
    """Return what decides the trained student; the device and who found it do not."""
    plain = {key: value for key, value in file.plain().items() if key not in _OUTSIDE}
    if code := code_fingerprints(plain):
        plain["code"] = code
    if plan is not None:
        whole = plan.plain()
        steps = [
            {**step, "recorded": fingerprint(step["recorded"])} if "recorded" in step else step
            for step in whole["steps"]
        ]
        plain["plan"] = {"budget": whole["budget"], "steps": steps}
    return plain


def check_samples(plan: TrainingPlan, workshop: Workshop) -> None:
    """Raise ConfigError when the budget of `plan` was counted for another number of training samples."""
    if plan.budget.samples != len(workshop.train):
        what = f"is {plan.budget.samples}, but {len(workshop.train)} samples are trained on: write the plan anew"
        raise ConfigError(Problem("budget.samples", what))


def _follow(
    file: TrainFile,
    plan: TrainingPlan | None,
    workshop: Workshop,
    out: Path,
    shared: nn.Module | None,
    on_progress: Callable[[Progress], None],
) -> StepResult:
    """Do the steps; after each supernet the stages as they went are written into the plan."""
    if plan is None:
        init = file.start if shared is None else LARGER
        only = DistilStep(name="student", share=1.0, arch=file.arch, epochs=file.training.epochs, init=init)
        return follow(file, [only], workshop, out, shared=shared, on_progress=on_progress)
    recorded = plan

    def on_step(step: Step, result: StepResult) -> None:
        nonlocal recorded
        if result.shrinking is not None:
            recorded = recorded.with_recorded(step.name, result.shrinking)
            write_plan(out / PLAN_FILE, recorded)

    return follow(
        file,
        plan.steps,
        workshop,
        out,
        budget_macs=plan.budget.macs,
        shared=shared,
        on_progress=on_progress,
        on_step=on_step,
    )


def _finish(
    file: TrainFile,
    plan: TrainingPlan | None,
    larger: Larger | None,
    out: Path,
    workshop: Workshop,
    trained: StepResult,
    formats: Sequence[str],
    notify: Callable[[str], None],
) -> FullTraining:
    test_score = workshop.test_score(workshop.entered(trained.network))
    card = _card(file, plan, larger, workshop, trained, test_score)
    student = assemble(file, trained.network, workshop, card=card)
    written = write_formats(student, had_formats(student, formats, notify), out, notify=notify)
    sha256 = {str(path.relative_to(out.resolve())): file_sha256(path) for path in written}
    result = FullTraining(
        folder=out,
        arch_id=file.arch_id,
        epochs=file.training.epochs,
        score=trained.score,
        test_score=test_score,
        train_seconds=trained.train_seconds,
        files=tuple(sha256),
        formats=tuple(formats),
        sha256=sha256,
    )
    plain = dataclasses.asdict(result)
    del plain["folder"], plain["already_done"]
    write_text(out / RESULT_FILE, json.dumps(plain, indent=2) + "\n")
    (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def _card(
    file: TrainFile,
    plan: TrainingPlan | None,
    larger: Larger | None,
    workshop: Workshop,
    trained: StepResult,
    test_score: float,
) -> StudentCard:
    data, teacher, training = workshop.data, workshop.teacher, file.training
    limits = [f"Its {data.task.score.name} is that of one training; how far another one would differ was not measured."]
    if plan is not None:
        limits.append(
            f"It was trained by the route `{plan.route}`: the steps of plan.yaml, together worth the epochs "
            "stated. train.yaml has the recipe that they share."
        )
    price, start = workshop.family.price(file.student), file.start if larger is None else "nested"
    weights = WeightsRecord(
        file.seed,
        training.epochs,
        training.data_fraction,
        start if plan is None else "plan",
        trained.train_seconds,
        cut_from=None if larger is None else larger.arch.arch_id,
    )
    return StudentCard(
        study=file.provenance.study,
        trial=file.provenance.trial,
        made_by=f"kdnas {__version__}",
        validation=MeanScore(trained.score, None, 1),
        test=MeanScore(test_score, None, 1),
        weights=weights,
        quantities={
            "macs": CostRecord(price.macs, "multiply-accumulates"),
            "params": CostRecord(price.params, "parameters"),
        },
        teacher=None if teacher is None else TeacherCard(teacher.name, notes=teacher.notes),
        further_teachers={
            name: TeacherCard(each.name, notes=each.notes)
            for name, each in workshop.teachers.items()
            if each is not teacher
        },
        data=data_card(file.data.validation_fraction, file.seed, data),
        limits=tuple(limits),
    )


STEP_FILE = "step.json"
WEIGHTS_FILE = "weights.safetensors"
_EVALUATION_SHARE = 0.1
"""At most about this share of the training time goes into looking at the validation score on the way."""


@dataclass(frozen=True)
class Progress:
    """News of a training. `done` of the whole is a share in [0, 1]; `score` is on the validation split, where known,
    of the `quantity` that the task is scored by.

    `step` counts from 1, of `steps`; `at` is the place in the step: "epoch 3/20".
    """

    step: int
    steps: int
    name: str
    at: str
    done: float
    loss: float
    score: float | None
    quantity: Quantity


@dataclass(frozen=True)
class StepResult:
    """A finished step: the network that it gives, in eval mode, and its score on the validation split.

    The score is computed in float32, as exported students are used, whatever the training's precision is.
    `shrinking` has the stages of a supernet as they went; `train_seconds` include what came before a resume.
    """

    network: nn.Module
    score: float
    train_seconds: float
    shrinking: ShrinkingRecord | None = None


def follow(
    file: TrainFile,
    steps: Sequence[Step],
    workshop: Workshop,
    out: Path,
    *,
    budget_macs: int | None = None,
    shared: nn.Module | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_step: Callable[[Step, StepResult], None] = lambda step, result: None,
) -> StepResult:
    """Do `steps` by the recipe of `file` and return the last one's result, with the `train_seconds` of all.

    With `budget_macs`, what the steps may spend together, each has a folder of its own under `out`: what an earlier
    call finished is read from there, what it left unfinished is continued. Without, the one step's folder is `out`
    itself, and its checkpoint stays there. `shared` is the student as it is cut out of the run's supernet, or of a
    larger student. `on_step` is called after each step. Raises TrialError when a loss is no longer finite,
    RunFolderError when a folder is damaged.
    """
    results: dict[str, StepResult] = {}
    whole, before = sum(step.share for step in steps), 0.0
    for index, step in enumerate(steps):
        folder = out if budget_macs is None else out / f"{index + 1}-{step.name}"
        part = (before / whole, step.share / whole)
        born = sum(
            isinstance(step, DistilStep) and isinstance(other, DistilStep) and other.arch == step.arch
            for other in steps[:index]
        )
        work = _Work(file, workshop, folder, step.name, index, len(steps), part, born, on_progress)
        result = work.finished(step)
        if result is None:
            folder.mkdir(parents=True, exist_ok=True)
            networks = {RUN_SUPERNET: shared, LARGER: shared, **{name: done.network for name, done in results.items()}}
            if isinstance(step, SupernetStep):
                result = work.supernet(step, step.budget(budget_macs or 0))
            else:
                larger = next((other for other in steps[:index] if other.name == step.init), step)
                result = work.distil(step, larger, networks.get(step.init), networks.get(step.teacher))
            if budget_macs is not None:
                work.finish(step, result)
        results[step.name] = result
        on_step(step, result)
        before += step.share
    train_seconds = sum(done.train_seconds for done in results.values())
    return replace(results[steps[-1].name], train_seconds=train_seconds)


@dataclass(frozen=True)
class _Work:
    """One step's place: its folder, and its part of the whole training."""

    file: TrainFile
    workshop: Workshop
    folder: Path
    name: str
    index: int
    steps: int
    part: tuple[float, float]
    """Of the whole: where it begins, and its share."""
    born: int
    """How many earlier steps train the same network: it begins at other random weights than they."""
    on_progress: Callable[[Progress], None]

    def distil(
        self, step: DistilStep, origin: Step, start: nn.Module | None, assistant: nn.Module | None
    ) -> StepResult:
        """Train the step's network with `assistant` or the teacher.

        It begins with the weights of `start`, the network of the step `origin`, cut out where that one is larger.
        """
        workshop = self.workshop
        arch = step.network(workshop.family)
        seed = derive_seed(self.file.seed, "full", arch.arch_id, *([self.born] if self.born else []))
        begins: Start = "inherited" if step.init == INHERITED else "random"
        network = workshop.begin(arch, begins, seed)
        if start is not None:
            family = sibling_family(workshop.family, arch.family)
            network.load_state_dict(family.cut_on(arch, origin.network(family), start).state_dict())
        watch = _Watch(self, step, workshop.entered(network))
        teachers = workshop.teachers
        if assistant is not None:  # it stands in for all of them
            teachers = dict.fromkeys(teachers, workshop.as_teacher(step.teacher, assistant))
        trained = distil(
            network,
            teachers,
            workshop.train,
            None,
            self.recipe(step.epochs, step.learning_rate),
            data=workshop.data,
            seed=seed,
            view_seed=self.view_seed,
            device=workshop.device,
            on_epoch=watch,
            checkpoint=self.folder / CHECKPOINT_FILE,
            peers=workshop.peers(arch, self.file.distillation, begins, seed),
        )
        watch.rewrite(trained.history)
        seen = workshop.validation_score(trained.network)
        return StepResult(trained.network.eval(), seen, trained.train_seconds)

    def supernet(self, step: SupernetStep, budget: int) -> StepResult:
        """Train the step's supernet and cut its network out."""
        workshop, elastic = self.workshop, step.elastic(self.workshop.family)
        network, trained = train_and_cut(
            workshop,
            step.search_space,
            elastic.family,
            workshop.train,
            self.recipe(1, 1.0),
            budget_macs=budget,
            inherits=step.init == INHERITED,
            seed=derive_seed(self.file.seed, "full", step.name),
            view_seed=self.view_seed,
            cut=step.corner,
            settings=step.settings,
            recorded=step.recorded,
            on_tick=functools.partial(self.report_tick, step.corner),
            checkpoint=self.folder / CHECKPOINT_FILE,
        )
        seen = workshop.validation_score(network)
        return StepResult(network, seen, trained.train_seconds, trained.shrinking)

    def recipe(self, epochs: int, factor: float) -> Recipe:
        """Return the file's recipe for `epochs`, its learning rate times `factor`."""
        training = self.file.training
        changes = {"epochs": epochs, "learning_rate": training.learning_rate * factor}
        return Recipe(training=training.model_copy(update=changes), distillation=self.file.distillation)

    @property
    def view_seed(self) -> int:
        """What draws the samples' views: other ones in each step."""
        return derive_seed(self.file.seed, "full views", *([self.index] if self.index else []))

    def report_tick(self, cut: Corner, tick: Tick) -> None:
        """Pass on how far a supernet's training is."""
        score = self.workshop.data.task.score
        check = tick.check
        share = None if check is None else check.smallest if cut == "smallest" else check.largest
        seen = None if share is None else score.from_share(share)
        self.report(f"stage {tick.stage}, {min(tick.spent, 1.0):.0%}", tick.spent, tick.loss, seen)

    def report(self, at: str, done: float, loss: float, seen: float | None) -> None:
        """Tell `on_progress` that the share `done` of the step is."""
        begins, share = self.part
        whole = begins + share * min(done, 1.0)
        score = self.workshop.data.task.score
        self.on_progress(Progress(self.index + 1, self.steps, self.name, at, whole, loss, seen, score))

    def finish(self, step: Step, result: StepResult) -> None:
        """Write what the step gave into its folder, and that it is finished."""
        save_weights(result.network, self.folder / WEIGHTS_FILE)
        if result.shrinking is not None:
            write_shrinking(self.folder / SHRINKING_FILE, result.shrinking)
        plain = {
            "name": step.name,
            "score": result.score,
            "train_seconds": result.train_seconds,
            "sha256": file_sha256(self.folder / WEIGHTS_FILE),
        }
        write_text(self.folder / STEP_FILE, json.dumps(plain, indent=2) + "\n")
        (self.folder / CHECKPOINT_FILE).unlink(missing_ok=True)

    def finished(self, step: Step) -> StepResult | None:
        """Return what an earlier call finished, None where it did not. Raises RunFolderError where it is damaged."""
        path = self.folder / STEP_FILE
        if not path.exists():
            return None
        arch = step.network(self.workshop.family)
        network = sibling_family(self.workshop.family, arch.family).build(arch)
        try:
            plain = scored(json.loads(path.read_text(encoding="utf-8")))
            if loss := loss_of(self.folder / WEIGHTS_FILE, plain.get("sha256", "")):
                raise ValueError(f"{WEIGHTS_FILE} {loss.words}")
            network.load_state_dict(safetensors.torch.load_file(self.folder / WEIGHTS_FILE))
            recorded = read_shrinking(self.folder) if isinstance(step, SupernetStep) else None
            network.to(self.workshop.device).eval()
            return StepResult(network, float(plain["score"]), float(plain["train_seconds"]), recorded)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            first = str(error).partition("\n")[0]
            raise RunFolderError(f"{self.folder} is damaged ({first}); remove it to repeat the step") from error


class _Watch:
    """Called at each epoch's end: looks at the validation score now and then, and keeps history.csv."""

    def __init__(self, work: _Work, step: DistilStep, module: nn.Module):
        self._work = work
        self._epochs = step.epochs
        self._module = module
        self._records, self._looks = read_history(work.folder)
        self._next_look = 0

    def __call__(self, record: EpochRecord) -> None:
        """Log `record` and report it."""
        seen = self._look(record) if record.epoch >= self._next_look else None
        self._looks = {epoch: look for epoch, look in self._looks.items() if epoch < record.epoch}
        if seen is not None:
            self._looks[record.epoch] = seen
        self._records = [*(earlier for earlier in self._records if earlier.epoch < record.epoch), record]
        write_history(self._work.folder, self._records, self._looks)
        self._work.report(f"epoch {record.epoch}/{self._epochs}", record.epoch / self._epochs, record.loss, seen)

    def rewrite(self, records: Sequence[EpochRecord]) -> None:
        """Write history.csv anew from the whole training's `records`: an interruption may have cost it a row."""
        write_history(self._work.folder, records, self._looks)

    def _look(self, record: EpochRecord) -> float:
        begun = time.perf_counter()
        seen = evaluate(self._module, self._work.workshop.validation, self._work.file.training)
        took = time.perf_counter() - begun
        pause = math.ceil(took / (_EVALUATION_SHARE * max(record.seconds, 1e-3)))
        self._next_look = record.epoch + max(1, pause)
        return seen
