"""Progressive shrinking of one student: a supernet of all that lies above it is trained, and the student cut out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.route import space_down_to
from kdnas.core.seeds import derive_seed
from kdnas.core.shrinking import ShrinkingRecord
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem
from kdnas.nn.elastic import Unfilled
from kdnas.students import StudentFamily
from kdnas.training.batches import Batches
from kdnas.training.recipe import Recipe
from kdnas.training.supernet import SupernetSettings
from kdnas.training.supernet.subnets import ElasticSpace
from kdnas.training.supernet.training import Tick, TrainedSupernet, train_supernet
from kdnas.workshop.jobs import Job, Way
from kdnas.workshop.opening import Workshop, first_samples
from kdnas.workshop.supernets import INHERITED_BY


def space_above(space: SearchSpace, family: StudentFamily, student: Arch, choices: Mapping[str, Scalar]) -> SearchSpace:
    """Return the part of `space` from its largest network down to `student`, which the proposal `choices` stands for.

    Raises ConfigError, with the reason, where a supernet has no such part.
    """
    if not space.family:
        raise ConfigError(Problem("route shrink", f"the space {space.name} names no student family"))
    own = {choice.name: choices.get(choice.name, choice.values[0]) for choice in space.choices}
    with Unfilled():
        family.supernet(space)
    down = space_down_to(space, ElasticSpace(space, family).ladders, own)
    elastic = ElasticSpace(down, family)
    if elastic.smallest.arch != student:
        what = f"student {student.arch_id} is not the smallest network of what lies above it"
        raise ConfigError(Problem("route shrink", what))
    if elastic.macs(elastic.largest) <= elastic.macs(elastic.smallest):
        raise ConfigError(Problem("route shrink", "the student is the largest network of the space"))
    return down


def shrink(
    workshop: Workshop,
    space: SearchSpace,
    family: StudentFamily,
    train: Batches,
    recipe: Recipe,
    *,
    budget_macs: int,
    inherits: bool,
    seed: int,
    view_seed: int,
    settings: SupernetSettings | None = None,
    recorded: ShrinkingRecord | None = None,
    on_tick: Callable[[Tick], None] | None = None,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, TrainedSupernet]:
    """Return the smallest network of `space`, cut out of a supernet that spent `budget_macs`, and that supernet.

    It begins with random weights, or where it `inherits` with those that its largest network has from the teacher.
    Raises TrialError where a loss is no longer finite.
    """
    elastic = ElasticSpace(space, family)
    torch.manual_seed(seed)
    supernet = family.supernet(space).to(workshop.device)
    if inherits:
        inputs, _ = first_samples(train, INHERITED_BY)
        family.inherit_supernet(supernet, elastic.largest.arch, inputs)
    epochs = max(1, math.ceil(budget_macs / (3 * elastic.macs(elastic.largest) * len(train))))
    training = recipe.training.model_copy(update={"epochs": epochs})
    trained = train_supernet(
        supernet,
        space,
        family,
        workshop.teachers,
        train,
        workshop.validation,
        recipe.model_copy(update={"training": training}),
        settings or SupernetSettings(),
        data=workshop.data,
        seed=seed,
        view_seed=view_seed,
        device=workshop.device,
        recorded=recorded,
        on_tick=on_tick or (lambda tick: None),
        checkpoint=checkpoint,
        budget_macs=budget_macs,
    )
    return trained.scorer.cut(trained.supernet, trained.space.smallest), trained


def cut_for(workshop: Workshop, job: Job, way: Way) -> tuple[nn.Module, float]:
    """Return the student of a final training as its supernet gives it, and the seconds that took.

    The supernet has what of the training's budget is not left to the student. Raises ConfigError where none holds the
    student, TrialError where its training fails.
    """
    training = job.recipe.training
    space = space_above(workshop.space, workshop.family, job.arch, way.choices)
    train = workshop.share(training.data_fraction, training.proxy)
    network, supernet = shrink(
        workshop,
        space,
        workshop.family,
        train,
        job.recipe,
        budget_macs=3 * workshop.family.price(job.arch).macs * (training.epochs - way.epochs) * len(train),
        inherits=job.start == "inherited",
        seed=derive_seed(job.init_seed, "supernet"),
        view_seed=derive_seed(job.view_seed, "supernet"),
    )
    return network, supernet.train_seconds
