"""The training loop: students trained by their recipes, one or several at once, with their teacher.

Samples stay plain on the device, images as floats in 0..255; student and teacher see the same batch. What a step is
stands in `kdnas.training.step`.

A small student's kernels leave most of a GPU idle, and kernels of different processes never run side by side there
(unless a multi-process service shares its context). So one process may train several students: trainings that share
their views read each batch from the same memory, the teacher is asked once for all of them, and every student's step
goes to a stream of its own. What each student learns is what it would have learnt alone. Students that draw random
numbers while they train (dropout) draw others than alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from kdnas.core.data import Data
from kdnas.core.fidelity import Fidelity
from kdnas.core.seeds import derive_seed
from kdnas.errors import TrialError
from kdnas.faults import reach
from kdnas.nn.teacher import Teaching, by_name, fingerprint_of
from kdnas.training.batches import Batches
from kdnas.training.checkpoint import load_checkpoint, load_modules, save_checkpoint
from kdnas.training.loss import needs_of
from kdnas.training.numerics import computing, settled_recipe
from kdnas.training.recipe import Recipe
from kdnas.training.step import (
    Step,
    TaughtBatch,
    TeachersOutputs,
    TimedBatches,
    memory_failures_as_trial_errors,
    open_step,
    open_teacher_outputs,
    own_randomness,
    scored,
    seconds_by_phase,
    taught_batches,
)
from kdnas.training.teacher_cache import TeacherCache

_STEPS_KEPT = 16


@dataclass(frozen=True)
class Course:
    """What trainings share that go together: their samples in one order, and the teacher.

    `train` holds the samples to use, a recipe's `data_fraction` applied. `view_seed` orders and varies them: trainings
    that share it see the same batches, which lets them share `teacher_cache` and makes their comparison less noisy.
    `teaching` is who teaches; without a teacher no loss may ask for one. `graphs`: capture whole steps on a CUDA
    device; elsewhere it changes nothing.
    """

    data: Data
    train: Batches
    validation: Batches | None
    teaching: Teaching
    view_seed: int
    device: torch.device
    teacher_cache: TeacherCache | None = None
    graphs: bool = True


@dataclass(frozen=True)
class Pupil:
    """One student of a course. `network` (behind `Task.entrance`) is trained in place.

    `seed` starts the adapters and dropout. `on_epoch` is called after each epoch; what it raises ends all trainings.
    `checkpoint` is rewritten before that call, and a training that finds its own checkpoint there continues exactly.
    `begin_from` is the checkpoint of another training: this one begins from its weights (network and adapters), as a
    warm restart, with an optimizer and a learning-rate schedule of its own. `peers` are those that learn with it, as
    many as the recipe's losses ask for, each with other weights.
    """

    network: nn.Module
    recipe: Recipe
    seed: int
    on_epoch: Callable[[EpochRecord], None] | None = None
    checkpoint: Path | None = None
    begin_from: Path | None = None
    peers: Sequence[nn.Module] = ()


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch, counted from 1: its mean loss, and its seconds with the teacher's."""

    epoch: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A trained student and how it went.

    `network` is in eval mode, without its entrance; `score` is on the validation split, None without one.
    `teacher_seconds` is the teacher's share of `train_seconds`; both include the epochs before a resume.
    `graph_failure` is why steps could not be captured on a CUDA device and ran one kernel at a time; else None.
    `unfused` is whether the recipe asks for fused norms that cannot be compiled on this machine. `phases` are the
    seconds that this process spent on the teacher, on the data (making batches; on a CPU only, a GPU makes them
    concurrently), on the student's steps and on the evaluation. `live_teacher` is whether the teacher was run on
    batches as they came, its outputs not being kept. Students trained together have equal shares of what they share.
    `by_task` are the scores of each of several tasks on the validation split, by name.
    """

    network: nn.Module
    score: float | None
    history: tuple[EpochRecord, ...]
    train_seconds: float
    teacher_seconds: float
    fidelity: Fidelity
    graph_failure: str | None = None
    unfused: bool = False
    phases: Mapping[str, float] = field(default_factory=dict)
    live_teacher: bool = False
    by_task: Mapping[str, float] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What slowed the training, in words."""
        notes = []
        if self.graph_failure is not None:
            notes.append(f"steps ran one kernel at a time: their capture as a CUDA graph failed ({self.graph_failure})")
        if self.unfused:
            notes.append("norms were not fused as the recipe states, so last digits differ: no C compiler works here")
        if self.live_teacher:
            notes.append("the teacher was run on batches as they came: its outputs were not kept")
        return tuple(notes)


def joined(parts: Sequence[Trained], fidelity: Fidelity) -> Trained:
    """Return a training of several parts as one."""
    if len(parts) == 1:
        return replace(parts[0], fidelity=fidelity)
    return replace(
        parts[-1],
        train_seconds=sum(part.train_seconds for part in parts),
        teacher_seconds=sum(part.teacher_seconds for part in parts),
        fidelity=fidelity,
        graph_failure=next((part.graph_failure for part in parts if part.graph_failure is not None), None),
        phases={phase: sum(part.phases.get(phase, 0.0) for part in parts) for phase in parts[-1].phases},
        live_teacher=any(part.live_teacher for part in parts),
    )


def train(course: Course, pupils: Sequence[Pupil]) -> list[Trained | TrialError]:
    """Train `pupils` in place, all at once, and return how each did.

    A training that fails (its loss is not finite, its memory runs out) is returned as its TrialError and does not
    disturb the others. Seconds of several are equal shares of the clock, but for each student's own evaluation.

    Raises ValueError where their recipes do not share their batches, or ask for other peers than are there, ConfigError
    when a loss does not fit student and teacher, RunFolderError when a checkpoint is damaged or another training's.
    """
    if not share_batches([pupil.recipe for pupil in pupils]):
        raise ValueError("the recipes differ in epochs, data, batches, augmentation, precision or what they ask of it")
    if any(len(pupil.peers) != pupil.recipe.distillation.further_peers for pupil in pupils):
        raise ValueError("a student has other peers than its losses ask for")
    if not pupils:
        return []
    recipes = [settled_recipe(pupil.recipe, course.device) for pupil in pupils]
    lanes: list[_Lane] = []
    try:
        with ExitStack() as stack:
            stack.enter_context(memory_failures_as_trial_errors())
            stack.enter_context(computing(recipes[0].training, course.device))
            stack.enter_context(own_randomness(derive_seed(pupils[0].seed, "training"), course.device))
            outputs, shapes = open_teacher_outputs(
                stack,
                by_name(course.teaching),
                course.train,
                recipes[0],
                data=course.data,
                device=course.device,
                view_seed=course.view_seed,
                teacher_cache=course.teacher_cache,
            )
            for pupil, recipe in zip(pupils, recipes, strict=True):
                step = open_step(
                    stack,
                    (pupil.network, *pupil.peers),
                    shapes,
                    recipe,
                    data=course.data,
                    device=course.device,
                    seed=pupil.seed,
                    graphs=course.graphs,
                    outputs=outputs,
                )
                several = len(pupils) > 1 and course.device.type == "cuda"
                lane = _Lane(pupil, step, torch.cuda.Stream(course.device) if several else None)
                lane.begin(course, recipe)
                lanes.append(lane)
            for epoch in range(min(len(lane.history) for lane in lanes), recipes[0].training.epochs):
                going = [lane for lane in lanes if lane.failure is None and len(lane.history) == epoch]
                if going:
                    _train_epoch(going, course, outputs, epoch)
                for lane in going:
                    lane.close_epoch(course.device)
            live = outputs is not None and outputs.is_live
            return [lane.outcome(course.validation, live) for lane in lanes]
    except TrialError as failure:  # what they share has failed
        return [failure] * len(pupils)


def distil(
    network: nn.Module,
    teaching: Teaching,
    train_on: Batches,
    validation: Batches | None,
    recipe: Recipe,
    *,
    data: Data,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    checkpoint: Path | None = None,
    begin_from: Path | None = None,
    view_seed: int | None = None,
    teacher_cache: TeacherCache | None = None,
    graphs: bool = True,
    peers: Sequence[nn.Module] = (),
) -> Trained:
    """Train one student and return it: `train` for a `Pupil` alone. Raises its TrialError where it fails.

    `view_seed` None: `seed`.
    """
    view_seed = seed if view_seed is None else view_seed
    course = Course(data, train_on, validation, teaching, view_seed, device, teacher_cache, graphs)
    (outcome,) = train(course, [Pupil(network, recipe, seed, on_epoch, checkpoint, begin_from, peers)])
    if isinstance(outcome, TrialError):
        raise outcome
    return outcome


def share_batches(recipes: Sequence[Recipe]) -> bool:
    """Return whether trainings by these recipes see the same batches and ask the teacher for the same outputs.

    Optimizer settings, the weights of the losses and the resolution may differ.
    """
    return len({batches_key(recipe) for recipe in recipes}) <= 1


def batches_key(recipe: Recipe) -> tuple[object, ...]:
    """Return what decides the batches of a training, and what it asks the teacher for."""
    training = recipe.training
    return (
        training.epochs,
        training.data_fraction,
        training.proxy and training.proxy.model_dump_json(),
        training.batch_size,
        training.augmentation,
        training.precision,
        training.threads,
        needs_of(recipe.distillation),
        frozenset(term.of for term in recipe.distillation.losses if term.weight > 0),
    )


@dataclass
class _Lane:
    """One student of a course: its step, its stream where several share a CUDA device, and its progress."""

    pupil: Pupil
    step: Step
    stream: torch.cuda.Stream | None
    failure: TrialError | None = None
    history: list[EpochRecord] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("teacher", "data", "student"), 0.0))
    teacher_seconds: float = 0.0
    """The epochs before a resume are in it, which `phases` leave out."""
    identity: str = ""
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def begin(self, course: Course, recipe: Recipe) -> None:
        """Begin from the pupil's origin, or go on from its own checkpoint. Raises RunFolderError."""
        pupil = self.pupil
        self.modules, origin = _modules(pupil.network, self.step, pupil.begin_from)
        self.identity = _identity(course, pupil, recipe, origin)
        if pupil.checkpoint is not None and pupil.checkpoint.exists():
            progress = load_checkpoint(
                pupil.checkpoint, self.modules, self.step.optimizer, identity=self.identity, device=course.device
            )
            self.history = [EpochRecord(**record) for record in progress["history"]]
            self.teacher_seconds = progress["teacher_seconds"]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work on this student's stream; what fails there ends this student's training only."""
        try:
            with (
                memory_failures_as_trial_errors(),
                nullcontext() if self.stream is None else torch.cuda.stream(self.stream),
            ):
                yield
        except TrialError as error:
            self.failure = error

    def close_epoch(self, device: torch.device) -> None:
        """Write the checkpoint of the epoch that has just ended, and report it."""
        if self.failure is not None:
            return
        if self.pupil.checkpoint is not None:
            progress = {
                "history": [asdict(record) for record in self.history],
                "teacher_seconds": self.teacher_seconds,
            }
            save_checkpoint(
                self.pupil.checkpoint,
                self.modules,
                self.step.optimizer,
                identity=self.identity,
                progress=progress,
                device=device,
            )
        reach("epoch")
        if self.pupil.on_epoch is not None:
            with self.step.shown():
                self.pupil.on_epoch(self.history[-1])

    def outcome(self, validation: Batches | None, live_teacher: bool) -> Trained | TrialError:
        """Return how the student did, scored on the validation split."""
        graph_failure = self.step.finish()
        scores: dict[str, float] = {}
        if self.failure is None and validation is not None:
            with self.turn():
                scores = scored(self.step, validation, self.phases)
        if self.failure is not None:
            return self.failure
        return Trained(
            network=self.pupil.network.to(memory_format=torch.contiguous_format),
            score=scores.pop(self.step.task.spec.score.name, None),
            history=tuple(self.history),
            train_seconds=sum(record.seconds for record in self.history),
            teacher_seconds=self.teacher_seconds,
            fidelity=self.step.training.fidelity,
            graph_failure=graph_failure,
            unfused=self.step.unfused,
            phases=self.phases,
            live_teacher=live_teacher,
            by_task=scores,
        )


class _Kept:
    """Keeps batches until every stream has read them: their memory belongs to the stream that made them."""

    def __init__(self) -> None:
        self._batches: list[TaughtBatch] = []
        self._before: tuple[list[TaughtBatch], list[torch.cuda.Event]] = ([], [])

    def add(self, batch: TaughtBatch, streams: Sequence[torch.cuda.Stream]) -> None:
        """Keep `batch`, which `streams` will read."""
        self._batches.append(batch)
        if len(self._batches) < _STEPS_KEPT:
            return
        for event in self._before[1]:
            torch.cuda.current_stream().wait_event(event)
        self._before = self._batches, [stream.record_event() for stream in streams]
        self._batches = []


def _train_epoch(lanes: Sequence[_Lane], course: Course, outputs: TeachersOutputs | None, epoch: int) -> None:
    """Train `lanes` on view `epoch` of the data."""
    training = lanes[0].step.training
    started = time.perf_counter()
    steps = course.train.steps(training.batch_size)
    for lane in lanes:
        with lane.turn():
            lane.step.begin(epoch, steps)
    kept = _Kept()
    batches = TimedBatches(taught_batches(course.train, outputs, training, epoch=epoch, view_seed=course.view_seed))
    streams = [lane.stream for lane in lanes if lane.stream is not None]
    for batch in batches:
        made = torch.cuda.current_stream().record_event() if streams else None
        for lane in lanes:
            if lane.failure is None:
                with lane.turn():
                    if lane.stream is not None and made is not None:
                        lane.stream.wait_event(made)
                    lane.step.learn(*batch)
        if streams:
            kept.add(batch, streams)
    losses: dict[int, float] = {}
    for number, lane in enumerate(lanes):
        with lane.turn():
            if lane.failure is None:
                losses[number] = lane.step.end()
        if lane.stream is not None:
            lane.stream.synchronize()  # the batches go now
    taught = 0.0 if outputs is None else outputs.end()
    seconds = time.perf_counter() - started
    spent = seconds_by_phase(course.device, seconds, taught, batches.seconds)
    for number, loss in losses.items():
        lane = lanes[number]
        lane.history.append(EpochRecord(epoch + 1, loss, seconds / len(lanes)))
        lane.teacher_seconds += spent["teacher"] / len(lanes)
        for phase, whole in spent.items():
            lane.phases[phase] += whole / len(lanes)


def _modules(network: nn.Module, step: Step, begin_from: Path | None) -> tuple[dict[str, nn.Module], str | None]:
    """Return what a checkpoint keeps, begun from that of another training where asked for, and that one's identity."""
    modules = {"network": network, "losses": step.criterion, **step.auxiliary()}
    origin = None if begin_from is None else load_modules(begin_from, modules)
    for member in step.members:
        if member.average is not None and origin is None:
            member.average.begin()  # anew: the networks may have been given weights since
    if step.average is not None:
        step.average.begin()
        modules["average"] = step.average.module
    return modules, origin


def _identity(course: Course, pupil: Pupil, recipe: Recipe, origin: str | None) -> str:
    """Return a hash of all that decides a training but the initial weights and the machine."""
    record = {
        "network": [(name, list(value.shape)) for name, value in pupil.network.state_dict().items()],
        "teacher": fingerprint_of(course.teaching),
        "data": course.data.fingerprint,
        "samples": hashlib.sha256(course.train.indices.astype("<i8").tobytes()).hexdigest(),
        "recipe": recipe.model_dump(mode="json"),
        "seeds": [pupil.seed, course.view_seed],
    }
    if origin is not None:
        record["origin"] = origin
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
