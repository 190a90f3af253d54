"""The distillation loop: trains one student by a recipe, beside its teacher.

Images stay raw floats in 0..255 on the device; student and teacher see the same batch. Losses are float32 whatever the
networks run in. Nothing in a step waits for the device.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdnas.core.data import ImageData
from kdnas.core.fidelity import Fidelity
from kdnas.core.seeds import derive_seed
from kdnas.errors import TrialError
from kdnas.nn.normalise import Normalised
from kdnas.nn.taps import Outputs, OutputShapes, Taps, output_shapes, stage_names
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.checkpoint import load_checkpoint, save_checkpoint
from kdnas.training.evaluation import accuracy, bfloat16_is_native
from kdnas.training.loss import TrainingLoss, needs_of
from kdnas.training.optimizer import build_optimizer, learning_rate
from kdnas.training.recipe import Distillation, Recipe
from kdnas.training.teacher_cache import TeacherCache
from kdnas.training.teaching import Teaching, views_key

_STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 100}
"""Looking at the loss makes a CUDA device wait, and costs a CPU nothing."""


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch, counted from 1: its mean loss, and its seconds with the teacher's."""

    epoch: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A trained student and how it went.

    `network` takes normalised images and is in eval mode; `accuracy` is on the validation split, None without one.
    `teacher_seconds` is the teacher's share of `train_seconds`; both include the epochs before a resume.
    """

    network: nn.Module
    accuracy: float | None
    history: tuple[EpochRecord, ...]
    train_seconds: float
    teacher_seconds: float
    fidelity: Fidelity


def distil(
    network: nn.Module,
    teacher: Teacher | None,
    train: Batches,
    validation: Batches | None,
    recipe: Recipe,
    *,
    data: ImageData,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    checkpoint: Path | None = None,
    view_seed: int | None = None,
    teacher_cache: TeacherCache | None = None,
) -> Trained:
    """Train `network` (normalised images in, logits out) in place and return it.

    Without a teacher the loss is cross entropy alone, at weight 1. The recipe's `data_fraction` has been applied by the
    caller: `train` holds the images to use.

    `seed` starts the adapters and dropout. `view_seed` (default: `seed`) orders and augments the images: trainings that
    share it see the same batches, which lets them share `teacher_cache` and makes their comparison less noisy.
    `on_epoch` is called after each epoch; what it raises ends the training. `checkpoint` is rewritten
    before that call, and a training that finds its own checkpoint there continues exactly.

    Raises TrialError when the loss is not finite or memory runs out, ConfigError when a loss does not fit student and
    teacher, RunFolderError when the checkpoint is damaged or another training's.
    """
    view_seed = seed if view_seed is None else view_seed
    with ExitStack() as stack:
        stack.enter_context(_memory_failures_as_trial_errors())
        stack.enter_context(_own_randomness(derive_seed(seed, "training"), device))
        lesson = _prepare(stack, network, teacher, train, recipe, data, device, seed, view_seed, teacher_cache)
        modules = {"network": network, "losses": lesson.criterion}
        identity = _identity(network, teacher, train, recipe, data, seed, view_seed)
        history: list[EpochRecord] = []
        teacher_seconds = 0.0
        if checkpoint is not None and checkpoint.exists():
            progress = load_checkpoint(checkpoint, modules, lesson.optimizer, identity=identity, device=device)
            history = [EpochRecord(**record) for record in progress["history"]]
            teacher_seconds = progress["teacher_seconds"]

        for epoch in range(len(history), recipe.training.epochs):
            started = time.perf_counter()
            loss, taught = _train_epoch(lesson, train, recipe, data, epoch, view_seed)
            history.append(EpochRecord(epoch + 1, loss, time.perf_counter() - started))
            teacher_seconds += taught
            if checkpoint is not None:
                progress = {"history": [asdict(record) for record in history], "teacher_seconds": teacher_seconds}
                save_checkpoint(
                    checkpoint, modules, lesson.optimizer, identity=identity, progress=progress, device=device
                )
            if on_epoch is not None:
                on_epoch(history[-1])

        lesson.optimizer.zero_grad(set_to_none=True)
        lesson.student.eval()
        score = None if validation is None else accuracy(lesson.student, validation, bfloat16=lesson.bfloat16)
    return Trained(
        network=network.to(memory_format=torch.contiguous_format),
        accuracy=score,
        history=tuple(history),
        train_seconds=sum(record.seconds for record in history),
        teacher_seconds=teacher_seconds,
        fidelity=Fidelity(recipe.training.epochs, recipe.training.data_fraction),
    )


@dataclass(frozen=True)
class _Lesson:
    """What one training holds: the student with its taps, the teacher's side, the loss and the optimizer."""

    student: nn.Module
    tapped: Taps
    teaching: Teaching | None
    criterion: TrainingLoss
    optimizer: torch.optim.Optimizer
    bfloat16: bool
    device: torch.device


def _prepare(
    stack: ExitStack,
    network: nn.Module,
    teacher: Teacher | None,
    train: Batches,
    recipe: Recipe,
    data: ImageData,
    device: torch.device,
    seed: int,
    view_seed: int,
    teacher_cache: TeacherCache | None,
) -> _Lesson:
    """Build the lesson; taps are hooked into both networks until `stack` closes."""
    training = recipe.training
    bfloat16 = training.precision == "bfloat16" or (training.precision == "auto" and bfloat16_is_native(device))
    distillation = recipe.distillation
    if teacher is None:
        distillation = Distillation(task_weight=1.0, label_smoothing=distillation.label_smoothing, losses=())
    needs = needs_of(distillation)

    student = Normalised(network, data.channel_mean, data.channel_std)
    student.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    stages, classifier = stage_names(network)
    stages = tuple(f"network.{name}" for name in stages)
    classifier = None if classifier is None else f"network.{classifier}"
    example = torch.zeros(2, *data.task.input_shape, device=device)
    shapes = output_shapes(student, stages, classifier, example)
    tapped = stack.enter_context(Taps(student, stages, classifier, needs=needs))

    teaching, teacher_shapes = None, OutputShapes(shapes.num_classes)
    if teacher is not None and needs:
        teacher.module.to(device).eval()
        teacher_shapes = output_shapes(teacher.module, teacher.stages, teacher.classifier, example)
        cache = None
        if teacher_cache is not None:
            key = views_key(
                teacher,
                teacher_shapes,
                data,
                needs=needs,
                augmentation=training.augmentation,
                view_seed=view_seed,
                bfloat16=bfloat16,
                device=device,
            )
            cache = None if key is None else (teacher_cache, key)
        teacher_taps = stack.enter_context(Taps(teacher.module, teacher.stages, teacher.classifier, needs=needs))
        teaching = Teaching(teacher_taps, device=device, bfloat16=bfloat16, samples=train.indices, cache=cache)

    criterion = TrainingLoss(distillation, shapes, teacher_shapes, seed=seed).to(device)
    optimizer = build_optimizer((network, criterion), training)
    return _Lesson(student, tapped, teaching, criterion, optimizer, bfloat16, device)


def _train_epoch(
    lesson: _Lesson, train: Batches, recipe: Recipe, data: ImageData, epoch: int, view_seed: int
) -> tuple[float, float]:
    """Train on view `epoch` of the data and return (mean loss, seconds of the teacher)."""
    training = recipe.training
    steps = train.steps(training.batch_size)
    check_every = _STEPS_BETWEEN_CHECKS.get(lesson.device.type, 1)
    losses = torch.zeros(steps, device=lesson.device)
    checked = 0
    lesson.student.train()
    lesson.criterion.train()
    if lesson.teaching is not None:
        lesson.teaching.begin(epoch)
    batches = train.epoch(
        epoch,
        batch_size=training.batch_size,
        augmentation=training.augmentation,
        fill=data.channel_mean,
        seed=view_seed,
    )
    for step, batch in enumerate(batches):
        images = batch.images.contiguous(memory_format=torch.channels_last)
        theirs = None if lesson.teaching is None else lesson.teaching(images, batch.samples)
        with torch.autocast(lesson.device.type, dtype=torch.bfloat16, enabled=lesson.bfloat16):
            ours: Outputs = lesson.tapped(images)
        loss = lesson.criterion(ours, theirs, batch.labels)
        rate = learning_rate(epoch * steps + step, training.epochs * steps, training)
        _step(lesson.optimizer, loss, rate, training.clip_norm)
        losses[step] = loss.detach()
        if (step + 1) % check_every == 0:
            _refuse_non_finite(losses, checked, step + 1, epoch)
            checked = step + 1
    _refuse_non_finite(losses, checked, steps, epoch)
    taught = 0.0 if lesson.teaching is None else lesson.teaching.end()
    return float(losses.mean()), taught


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip_norm: float | None) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip_norm is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _refuse_non_finite(losses: Tensor, begin: int, end: int, epoch: int) -> None:
    values = losses[begin:end]
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        what = "nan" if bool(torch.isnan(values[first])) else "infinite"
        raise TrialError(f"loss became {what} at epoch {epoch + 1}, step {begin + first + 1}")


def _identity(
    network: nn.Module,
    teacher: Teacher | None,
    train: Batches,
    recipe: Recipe,
    data: ImageData,
    seed: int,
    view_seed: int,
) -> str:
    """Return a hash of all that decides a training but the initial weights and the machine."""
    record = {
        "network": [(name, list(value.shape)) for name, value in network.state_dict().items()],
        "teacher": None if teacher is None else teacher.fingerprint,
        "data": data.fingerprint,
        "samples": hashlib.sha256(train.indices.astype("<i8").tobytes()).hexdigest(),
        "recipe": recipe.model_dump(mode="json"),
        "seeds": [seed, view_seed],
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators (dropout draws from them) and give the caller's states back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _memory_failures_as_trial_errors() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise TrialError(f"out of memory: {text.partition(chr(10))[0]}") from error
        raise
