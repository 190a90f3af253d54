"""Several students trained at once on one device, on the same batches.

A small student's kernels leave most of a GPU idle, and kernels of different processes never run side by side there
(unless a multi-process service shares its context). So one process drives several students: trainings that share their
views read each batch from the same memory, the teacher is asked once for all of them, and every student's step goes to
a stream of its own. What each student learns is what it would have learnt alone. Students that draw random numbers
while they train (dropout) draw others than alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from kdnas.core.data import ImageData
from kdnas.core.seeds import derive_seed
from kdnas.errors import TrialError
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.distil import EpochRecord, Trained
from kdnas.training.lesson import (
    Lesson,
    TaughtBatch,
    TimedBatches,
    memory_failures_as_trial_errors,
    open_lesson,
    open_teaching,
    own_randomness,
    scored,
    seconds_by_phase,
    taught_batches,
)
from kdnas.training.loss import needs_of
from kdnas.training.numerics import computing, settled_recipe
from kdnas.training.recipe import Recipe
from kdnas.training.teacher_cache import TeacherCache
from kdnas.training.teaching import Teaching

SIZES = (1, 2, 4, 8, 16)
_STEPS_KEPT = 16


@dataclass
class _Lane:
    """One student of a pack: its lesson, the stream that it has on a CUDA device, and how it goes."""

    network: nn.Module
    lesson: Lesson
    stream: torch.cuda.Stream | None
    failure: TrialError | None = None
    history: list[EpochRecord] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("teacher", "data", "student"), 0.0))

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


class _Kept:
    """Keeps batches until every stream has read them: their memory belongs to the stream that made them."""

    def __init__(self) -> None:
        self._batches: list[TaughtBatch] = []
        self._before: tuple[list[TaughtBatch], list[torch.cuda.Event]] = ([], [])

    def add(self, batch: TaughtBatch, streams: Sequence[torch.cuda.Stream]) -> None:
        """Keep `batch`, which `streams` have been told to read."""
        self._batches.append(batch)
        if len(self._batches) < _STEPS_KEPT:
            return
        for event in self._before[1]:
            torch.cuda.current_stream().wait_event(event)
        self._before = self._batches, [stream.record_event() for stream in streams]
        self._batches = []


def share_batches(recipes: Sequence[Recipe]) -> bool:
    """Return whether trainings by these recipes see the same batches and ask the teacher for the same outputs.

    Optimizer settings, the weights of the losses and the resolution may differ.
    """
    return len({_batches_key(recipe) for recipe in recipes}) <= 1


def _batches_key(recipe: Recipe) -> tuple[object, ...]:
    training = recipe.training
    return (
        training.epochs,
        training.data_fraction,
        training.batch_size,
        training.augmentation,
        training.precision,
        training.threads,
        needs_of(recipe.distillation),
    )


def distil_together(
    networks: Sequence[nn.Module],
    teacher: Teacher | None,
    train: Batches,
    validation: Batches | None,
    recipes: Sequence[Recipe],
    *,
    data: ImageData,
    seeds: Sequence[int],
    view_seed: int,
    device: torch.device,
    on_epoch: Sequence[Callable[[EpochRecord], None]] | None = None,
    teacher_cache: TeacherCache | None = None,
    graphs: bool = True,
) -> list[Trained | TrialError]:
    """Train each of `networks` in place by its recipe and seed, all at once, and return what `distil` would for each.

    A training that fails is returned as its TrialError and does not disturb the others. `on_epoch` holds a function a
    student. Seconds are equal shares of the clock, but for each student's own evaluation. Raises ValueError where the
    recipes do not share their batches, ConfigError as `distil` does.
    """
    if not len(networks) == len(recipes) == len(seeds):
        raise ValueError(f"{len(networks)} networks, {len(recipes)} recipes and {len(seeds)} seeds")
    if not share_batches(recipes):
        raise ValueError("the recipes differ in epochs, data, batches, augmentation, precision or what they ask of it")
    if not networks:
        return []
    recipes = [settled_recipe(recipe, device) for recipe in recipes]
    epochs = recipes[0].training.epochs
    with ExitStack() as stack:
        stack.enter_context(computing(recipes[0].training, device))
        teaching, shapes = open_teaching(
            stack,
            teacher,
            train,
            recipes[0],
            data=data,
            device=device,
            view_seed=view_seed,
            teacher_cache=teacher_cache,
        )
        stack.enter_context(own_randomness(derive_seed(seeds[0], "training"), device))
        lanes = []
        for network, recipe, seed in zip(networks, recipes, seeds, strict=True):
            lesson = open_lesson(stack, network, shapes, recipe, data=data, device=device, seed=seed, graphs=graphs)
            lanes.append(_Lane(network, lesson, torch.cuda.Stream(device) if device.type == "cuda" else None))
        for epoch in range(epochs):
            if all(lane.failure is not None for lane in lanes):
                break
            _train_epoch(lanes, teaching, train, data, epoch, view_seed)
            for lane, tell in zip(lanes, on_epoch or (), strict=on_epoch is not None):
                if lane.failure is None:
                    with lane.lesson.shown():
                        tell(lane.history[-1])
        live = teaching is not None and teaching.is_live
        return [_trained(lane, validation, live) for lane in lanes]


def _train_epoch(
    lanes: Sequence[_Lane], teaching: Teaching | None, train: Batches, data: ImageData, epoch: int, view_seed: int
) -> None:
    """Train every lane that goes well on view `epoch`."""
    training = lanes[0].lesson.training
    steps = train.steps(training.batch_size)
    started = time.perf_counter()
    going = [lane for lane in lanes if lane.failure is None]
    for lane in going:
        with lane.turn():
            lane.lesson.begin(epoch, steps)
    kept = _Kept()
    batches = TimedBatches(taught_batches(train, teaching, training, data=data, epoch=epoch, view_seed=view_seed))
    for batch in batches:
        on_cuda = batch[0].is_cuda
        made = torch.cuda.current_stream().record_event() if on_cuda else None
        for lane in going:
            if lane.failure is None:
                with lane.turn():
                    if lane.stream is not None and made is not None:
                        lane.stream.wait_event(made)
                    lane.lesson.learn(*batch)
        if on_cuda:
            kept.add(batch, [lane.stream for lane in going if lane.stream is not None])
    losses: dict[int, float] = {}
    for number, lane in enumerate(going):
        with lane.turn():
            if lane.failure is None:
                losses[number] = lane.lesson.end()
        if lane.stream is not None:
            lane.stream.synchronize()  # the batches go now
    taught = 0.0 if teaching is None else teaching.end()
    seconds = time.perf_counter() - started
    spent = seconds_by_phase(lanes[0].lesson.device, seconds, taught, batches.seconds)
    for number, loss in losses.items():
        lane = going[number]
        lane.history.append(EpochRecord(epoch + 1, loss, seconds / len(going)))
        for phase, whole in spent.items():
            lane.phases[phase] += whole / len(going)


def _trained(lane: _Lane, validation: Batches | None, live_teacher: bool) -> Trained | TrialError:
    """Return how the lane's student did."""
    graph_failure = lane.lesson.finish()
    if lane.failure is not None:
        return lane.failure
    try:
        with memory_failures_as_trial_errors():
            score = None if validation is None else scored(lane.lesson, validation, lane.phases)
    except TrialError as error:
        return error
    return Trained(
        network=lane.network.to(memory_format=torch.contiguous_format),
        accuracy=score,
        history=tuple(lane.history),
        train_seconds=sum(record.seconds for record in lane.history),
        teacher_seconds=lane.phases["teacher"],
        fidelity=lane.lesson.training.fidelity,
        graph_failure=graph_failure,
        unfused=lane.lesson.unfused,
        phases=lane.phases,
        live_teacher=live_teacher,
    )


@dataclass(frozen=True)
class Packing:
    """How many students to train at once, and the images a second, of all of them, at each number that was tried."""

    size: int
    rates: Mapping[int, float] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What was measured and chosen; empty where nothing was measured."""
        if not self.rates:
            return ""
        tried = ", ".join(f"{size}: {rate:,.0f}" for size, rate in self.rates.items())
        chosen = "one student" if self.size == 1 else f"{self.size} students"
        return f"{chosen} at a time on each device, as measured (images a second by students at a time: {tried})"


def choose_size(rate: Callable[[int], float], *, sizes: Sequence[int] = SIZES, least_gain: float = 0.05) -> Packing:
    """Return the largest of `sizes` that was still worth it: each must be `least_gain` faster than the one before.

    `rate` measures the images a second of so many students together. A size that fails (TrialError: memory) ends the
    trying; the first one's failure is raised.
    """
    rates: dict[int, float] = {}
    chosen = sizes[0]
    for size in sizes:
        try:
            rates[size] = rate(size)
        except TrialError:
            if not rates:
                raise
            break
        if size == chosen:
            continue
        if rates[size] < (1.0 + least_gain) * rates[chosen]:
            break
        chosen = size
    return Packing(chosen, rates)


def measured_rate(
    make_network: Callable[[], nn.Module],
    size: int,
    train: Batches,
    recipe: Recipe,
    *,
    data: ImageData,
    device: torch.device,
    graphs: bool = True,
) -> float:
    """Return the images a second of `size` such students trained together without a teacher, all of them counted.

    Two epochs are trained; the second is measured, when everything is captured. Raises TrialError where one fails.
    """
    training = recipe.training.model_copy(update={"epochs": 2})
    alone = recipe.model_copy(update={"training": training})
    networks = [make_network() for _ in range(size)]
    outcomes = distil_together(
        networks,
        None,
        train,
        None,
        [alone] * size,
        data=data,
        seeds=[0] * size,
        view_seed=0,
        device=device,
        graphs=graphs,
    )
    seconds = 0.0
    for outcome in outcomes:
        if isinstance(outcome, TrialError):
            raise outcome
        seconds += outcome.history[1].seconds  # equal shares of the clock
    return size * len(train) / seconds
