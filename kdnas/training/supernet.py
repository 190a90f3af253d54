"""The training of a supernet: all students of a space at once, beside their teacher, by a shrinking policy.

A step takes one batch through one or several subnets, adds up their gradients and updates the shared weights once: what
each of them learns from stands in `subnet_step`, which subnets there are in `shrinking`, what is spent in
`supernet_run`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch

from kdnas.core.data import ImageData
from kdnas.core.schedule import Ladders, Schedule
from kdnas.core.seeds import derive_seed
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem
from kdnas.nn.elastic import Supernet
from kdnas.students import STUDENTS, StudentFamily
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import accuracy
from kdnas.training.numerics import computing, in_bfloat16, settled_recipe
from kdnas.training.recipe import Recipe
from kdnas.training.shrinking import Recorded, policy_of
from kdnas.training.step import TaughtBatch, memory_failures_as_trial_errors, open_teacher_outputs, own_randomness
from kdnas.training.subnet_step import SubnetStep
from kdnas.training.subnets import ElasticSpace, SubnetScorer
from kdnas.training.supernet_run import SupernetRun, Tick
from kdnas.training.supernet_settings import SupernetSettings as SupernetSettings
from kdnas.training.teacher_cache import TeacherCache
from kdnas.training.teacher_outputs import TeacherOutputs

_PANEL_SHARE = 0.005
"""Scoring the three subnets of the panel takes so many images that it spends about this of the budget, at most."""
_FEWEST_IMAGES = 64


@dataclass(frozen=True)
class TrainedSupernet:
    """A trained supernet, in eval mode, its recorded schedule, and what scores and cuts its subnets.

    `train_seconds` include the measuring that the policy asked for, and what came before a resume.
    """

    supernet: Supernet
    space: ElasticSpace
    ladders: Ladders
    scorer: SubnetScorer
    schedule: Schedule
    teacher_accuracy: float
    steps: int
    train_seconds: float


def train_supernet(
    supernet: Supernet,
    space: SearchSpace,
    teacher: Teacher,
    train: Batches,
    validation: Batches,
    recipe: Recipe,
    settings: SupernetSettings,
    *,
    data: ImageData,
    seed: int,
    device: torch.device,
    schedule: Schedule | None = None,
    on_tick: Callable[[Tick], None] = lambda tick: None,
    checkpoint: Path | None = None,
    view_seed: int | None = None,
    teacher_cache: TeacherCache | None = None,
    budget_macs: int | None = None,
) -> TrainedSupernet:
    """Train `supernet`, which holds the networks of `space`, in place, and return it with its schedule.

    The budget is `budget_macs`, by default the work of `recipe.training.epochs` epochs of the largest subnet alone.
    With `schedule` a recorded one is followed instead of the policy of `settings`. `seed` draws subnets and starts
    adapters, `view_seed` (default: `seed`) orders and augments the images. `checkpoint` is rewritten at every check,
    and a training that finds its own there continues exactly. `on_tick` is called after that; what it raises ends the
    training.

    Raises ConfigError where space, losses, schedule or resolutions do not fit, TrialError when the loss is not finite
    or memory runs out, RunFolderError when the checkpoint is damaged or another training's.
    """
    view_seed = seed if view_seed is None else view_seed
    elastic, ladders = _elastic(space, settings, data)
    policy = policy_of(settings.shrinking, ladders) if schedule is None else Recorded(ladders, schedule)
    recipe = settled_recipe(recipe, device)
    bfloat16 = in_bfloat16(recipe.training, device)
    budget_macs = budget_macs or 3 * elastic.price(ladders.largest) * len(train) * recipe.training.epochs
    panel_macs = sum(map(elastic.price, ladders.panel))
    scorer, checker = _scorers(
        data, train, validation, settings, bfloat16, int(_PANEL_SHARE * budget_macs / panel_macs)
    )
    identity = _identity(supernet, space, teacher, train, recipe, settings, data, schedule, [seed, view_seed])
    identity += f"-{budget_macs}"
    supernet.to(device)
    with ExitStack() as stack:
        stack.enter_context(memory_failures_as_trial_errors())
        pixels = recipe.training.epochs * len(train) * math.prod(data.task.image_shape[1:])
        stack.enter_context(computing(recipe.training, device))
        stack.enter_context(own_randomness(derive_seed(seed, "training"), device))
        outputs, shapes = open_teacher_outputs(
            stack, teacher, train, recipe, data=data, device=device, view_seed=view_seed, teacher_cache=teacher_cache
        )
        assert shapes is not None  # there is a teacher
        subnet_step = SubnetStep(
            stack, supernet, elastic.spec(ladders.largest), shapes, recipe.distillation,
            data=data, in_place=settings.in_place, bfloat16=bfloat16, device=device, seed=seed,
            pixels=pixels if recipe.training.fused_norms is True else 0.0,
        )  # fmt: skip
        taught = accuracy(teacher.module.to(device), validation, bfloat16=bfloat16)
        run = SupernetRun(
            supernet, elastic, ladders, policy, subnet_step, checker, recipe.training, settings.shrinking,
            budget_macs=budget_macs, teacher_accuracy=taught, seed=seed,
        )  # fmt: skip
        if checkpoint is not None and checkpoint.exists():
            run.resume(checkpoint, identity)
        batches = stack.enter_context(closing(_stream(run, train, outputs, recipe, data, view_seed, settings.views)))
        run.train(batches, lambda: None if checkpoint is None else run.save(checkpoint, identity), on_tick)
    supernet.eval().zero_grad(set_to_none=True)
    record = Schedule(policy.name, space.name, space.family, run.budget_macs, tuple(run.history))
    return TrainedSupernet(supernet, elastic, ladders, scorer, record, taught, run.step, run.train_seconds)


def _scorers(
    data: ImageData, train: Batches, validation: Batches, settings: SupernetSettings, bfloat16: bool, affordable: int
) -> tuple[SubnetScorer, SubnetScorer]:
    """Return what scores subnets on the whole validation split, and on as much of it as the training's checks take.

    `affordable` images are what a check may take altogether, a third of them for the statistics.
    """
    scored = min(settings.check_images, max(_FEWEST_IMAGES, 2 * affordable // 3))
    counts = (settings.recalibration_images, None), (min(settings.recalibration_images, -(-scored // 2)), scored)
    return tuple(  # type: ignore[return-value]
        SubnetScorer(data, train, validation, recalibration_images=few, validation_images=count, bfloat16=bfloat16)
        for few, count in counts
    )


def _elastic(space: SearchSpace, settings: SupernetSettings, data: ImageData) -> tuple[ElasticSpace, Ladders]:
    """Return the space as the training sees it, and its ladders. Raises ConfigError."""
    height = data.task.image_shape[1]
    if any(side > height for side in settings.resolutions):
        raise ConfigError(Problem("resolutions", f"{settings.resolutions} exceed the images' height", f"1..{height}"))
    family: StudentFamily = STUDENTS.build(space.family)
    elastic = ElasticSpace(space, family, data.task, settings.resolutions)
    ladders = Ladders.of(elastic.space, elastic.price)
    elastic.price(ladders.smallest(ladders.values))  # refused where every stage may be left out
    return elastic, ladders


def _stream(
    run: SupernetRun,
    train: Batches,
    outputs: TeacherOutputs | None,
    recipe: Recipe,
    data: ImageData,
    view_seed: int,
    views: int | None,
) -> Generator[TaughtBatch, None, None]:
    """Yield batches for ever, view after view, from where `run` stands, and keep its place."""
    while True:
        view = run.epoch if views is None else run.epoch % views
        batches = train.epoch(
            view,
            batch_size=recipe.training.batch_size,
            augmentation=recipe.training.augmentation,
            fill=data.channel_mean,
            seed=view_seed,
        )
        if outputs is not None:
            outputs.begin(view)
        try:
            for index, batch in enumerate(batches):
                if index >= run.batch:
                    images = batch.images.contiguous(memory_format=torch.channels_last)
                    theirs = None if outputs is None else outputs(images, batch.samples)
                    run.batch = index + 1
                    yield images, batch.labels, theirs
        finally:
            if outputs is not None:
                outputs.end()
        run.epoch, run.batch = run.epoch + 1, 0


def _identity(
    supernet: Supernet,
    space: SearchSpace,
    teacher: Teacher,
    train: Batches,
    recipe: Recipe,
    settings: SupernetSettings,
    data: ImageData,
    schedule: Schedule | None,
    seeds: list[int],
) -> str:
    """Return a hash of all that decides a training but the initial weights and the machine."""
    record = {
        "supernet": [(name, list(value.shape)) for name, value in supernet.state_dict().items()],
        "space": dataclasses.asdict(space),
        "teacher": teacher.fingerprint,
        "data": data.fingerprint,
        "samples": hashlib.sha256(train.indices.astype("<i8").tobytes()).hexdigest(),
        "recipe": recipe.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "schedule": None if schedule is None else schedule.as_dict(),
        "seeds": seeds,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
