"""The distillation loop: trains one student by a recipe, beside its teacher.

Images stay raw floats in 0..255 on the device; student and teacher see the same batch. What a step is stands in
`kdnas.training.lesson`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from kdnas.core.data import ImageData
from kdnas.core.fidelity import Fidelity
from kdnas.core.seeds import derive_seed
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.checkpoint import load_checkpoint, load_modules, save_checkpoint
from kdnas.training.lesson import (
    Lesson,
    TimedBatches,
    memory_failures_as_trial_errors,
    open_lesson,
    open_teaching,
    own_randomness,
    scored,
    seconds_by_phase,
    taught_batches,
)
from kdnas.training.numerics import computing, settled_recipe
from kdnas.training.recipe import Recipe
from kdnas.training.teacher_cache import TeacherCache
from kdnas.training.teaching import Teaching


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
    `graph_failure` is why steps could not be captured on a CUDA device and ran one kernel at a time; else None.
    `unfused` is whether the recipe asks for fused norms that cannot be compiled on this machine.
    `phases` are the seconds that this process spent on the teacher, on the data (making batches; on a CPU only, a GPU
    makes them beside), on the student's steps and on the evaluation. `live_teacher` is whether the teacher was run on
    batches as they came, its outputs not being kept. Students trained together have equal shares of what they share.
    """

    network: nn.Module
    accuracy: float | None
    history: tuple[EpochRecord, ...]
    train_seconds: float
    teacher_seconds: float
    fidelity: Fidelity
    graph_failure: str | None = None
    unfused: bool = False
    phases: Mapping[str, float] = field(default_factory=dict)
    live_teacher: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What slowed the training, in words."""
        notes = []
        if self.graph_failure is not None:
            notes.append(f"steps ran one kernel at a time: their capture as a CUDA graph failed ({self.graph_failure})")
        if self.unfused:
            notes.append("norms were not fused as the recipe says, so last digits differ: no C compiler works here")
        if self.live_teacher:
            notes.append("the teacher was run on batches as they came: its outputs were not kept")
        return tuple(notes)


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
    begin_from: Path | None = None,
    view_seed: int | None = None,
    teacher_cache: TeacherCache | None = None,
    graphs: bool = True,
) -> Trained:
    """Train `network` (normalised images in, logits out) in place and return it.

    Without a teacher the loss is cross entropy alone, at weight 1. The recipe's `data_fraction` has been applied by the
    caller: `train` holds the images to use. `seed` starts the adapters and dropout. `view_seed` (default: `seed`)
    orders and augments the images: trainings that share it see the same batches, which lets them share `teacher_cache`
    and makes their comparison less noisy. `on_epoch` is called after each epoch; what it raises ends the training.
    `checkpoint` is rewritten before that call, and a training that finds its own checkpoint there continues exactly.
    `begin_from` is the checkpoint of another training: this one begins from its weights (network and adapters), as a
    warm restart, with an optimizer and a learning-rate schedule of its own. `graphs`: capture whole steps on a CUDA
    device; elsewhere it changes nothing.

    Raises TrialError when the loss is not finite or memory runs out, ConfigError when a loss does not fit student and
    teacher, RunFolderError when a checkpoint is damaged or another training's.
    """
    view_seed = seed if view_seed is None else view_seed
    recipe = settled_recipe(recipe, device)
    with ExitStack() as stack:
        stack.enter_context(memory_failures_as_trial_errors())
        stack.enter_context(computing(recipe.training, device))
        stack.enter_context(own_randomness(derive_seed(seed, "training"), device))
        teaching, shapes = open_teaching(
            stack, teacher, train, recipe, data=data, device=device, view_seed=view_seed, teacher_cache=teacher_cache
        )
        lesson = open_lesson(stack, network, shapes, recipe, data=data, device=device, seed=seed, graphs=graphs)
        modules, origin = _modules(network, lesson, begin_from)
        identity = _identity(network, teacher, train, recipe, data, seed, view_seed, origin)
        history, teacher_seconds = list[EpochRecord](), 0.0
        phases = dict.fromkeys(("teacher", "data", "student"), 0.0)
        if checkpoint is not None and checkpoint.exists():
            progress = load_checkpoint(checkpoint, modules, lesson.optimizer, identity=identity, device=device)
            history = [EpochRecord(**record) for record in progress["history"]]
            teacher_seconds = progress["teacher_seconds"]
        for epoch in range(len(history), recipe.training.epochs):
            record, spent = _train_epoch(lesson, teaching, train, data, epoch, view_seed)
            history.append(record)
            teacher_seconds += spent["teacher"]
            phases = {phase: seconds + spent[phase] for phase, seconds in phases.items()}
            if checkpoint is not None:
                progress = {"history": [asdict(record) for record in history], "teacher_seconds": teacher_seconds}
                optimizer = lesson.optimizer
                save_checkpoint(checkpoint, modules, optimizer, identity=identity, progress=progress, device=device)
            if on_epoch is not None:
                with lesson.shown():
                    on_epoch(record)
        failure = lesson.finish()
        score = None if validation is None else scored(lesson, validation, phases)
    return Trained(
        network=network.to(memory_format=torch.contiguous_format),
        accuracy=score,
        history=tuple(history),
        train_seconds=sum(record.seconds for record in history),
        teacher_seconds=teacher_seconds,
        fidelity=recipe.training.fidelity,
        graph_failure=failure,
        unfused=lesson.unfused,
        phases=phases,
        live_teacher=teaching is not None and teaching.is_live,
    )


def _modules(network: nn.Module, lesson: Lesson, begin_from: Path | None) -> tuple[dict[str, nn.Module], str | None]:
    """Return what a checkpoint keeps, begun from that of another training where asked for, and that one's identity."""
    modules = {"network": network, "losses": lesson.criterion}
    origin = None if begin_from is None else load_modules(begin_from, modules)
    if lesson.average is not None:
        lesson.average.begin()
        modules["average"] = lesson.average.module
    return modules, origin


def _train_epoch(
    lesson: Lesson, teaching: Teaching | None, train: Batches, data: ImageData, epoch: int, view_seed: int
) -> tuple[EpochRecord, dict[str, float]]:
    """Train on view `epoch` of the data and return its record, and its seconds by phase."""
    started = time.perf_counter()
    lesson.begin(epoch, train.steps(lesson.training.batch_size))
    batches = TimedBatches(
        taught_batches(train, teaching, lesson.training, data=data, epoch=epoch, view_seed=view_seed)
    )
    for batch in batches:
        lesson.learn(*batch)
    loss = lesson.end()
    taught = 0.0 if teaching is None else teaching.end()
    record = EpochRecord(epoch + 1, loss, time.perf_counter() - started)
    return record, seconds_by_phase(lesson.device, record.seconds, taught, batches.seconds)


def _identity(
    network: nn.Module,
    teacher: Teacher | None,
    train: Batches,
    recipe: Recipe,
    data: ImageData,
    seed: int,
    view_seed: int,
    origin: str | None,
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
    if origin is not None:
        record["origin"] = origin
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
