"""Progressive training of one student: a supernet of all that lies above or below it is trained, and it is cut out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.route import CUT, Corner, Progressive, space_down_to, space_up_to
from kdnas.core.seeds import derive_seed
from kdnas.core.shrinking import ShrinkingRecord
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem
from kdnas.nn.elastic import Unfilled
from kdnas.students import StudentFamily
from kdnas.training.batches import Batches
from kdnas.training.recipe import Recipe
from kdnas.training.supernet import SupernetSettings
from kdnas.training.supernet.policies import ShrinkingSettings
from kdnas.training.supernet.subnets import ElasticSpace
from kdnas.training.supernet.training import Tick, TrainedSupernet, train_supernet
from kdnas.workshop.jobs import Job, Way
from kdnas.workshop.opening import Workshop, first_samples
from kdnas.workshop.supernets import INHERITED_BY

SUPERNET_OF: Mapping[Progressive, SupernetSettings] = {
    "shrink": SupernetSettings(),
    "grow": SupernetSettings(shrinking=ShrinkingSettings(policy="growing")),
}
"""How the supernet of each route is trained unless a plan states otherwise."""


def space_around(
    space: SearchSpace, family: StudentFamily, student: Arch, choices: Mapping[str, Scalar], route: Progressive
) -> SearchSpace:
    """Return the part of `space` through which `student`, which the proposal `choices` stands for, shrinks or grows.

    It is what lies between the space's largest network, or its smallest, and the student. Raises ConfigError, with the
    reason, where a supernet has no such part.
    """
    where = f"route {route}"
    if not space.family:
        raise ConfigError(Problem(where, f"the space {space.name} names no student family"))
    own = {choice.name: choices.get(choice.name, choice.values[0]) for choice in space.choices}
    with Unfilled():
        family.supernet(space)
    part = space_down_to if route == "shrink" else space_up_to
    around = part(space, ElasticSpace(space, family).ladders, own)
    elastic = ElasticSpace(around, family)
    if elastic.corner(CUT[route]).arch != student:
        lies = "above" if route == "shrink" else "below"
        what = f"student {student.arch_id} is not the {CUT[route]} network of what lies {lies} it"
        raise ConfigError(Problem(where, what))
    if elastic.macs(elastic.largest) <= elastic.macs(elastic.smallest):
        other = "largest" if route == "shrink" else "smallest"
        raise ConfigError(Problem(where, f"the student is the {other} network of the space"))
    return around


def train_and_cut(
    workshop: Workshop,
    space: SearchSpace,
    family: StudentFamily,
    train: Batches,
    recipe: Recipe,
    *,
    cut: Corner,
    settings: SupernetSettings,
    budget_macs: int,
    inherits: bool,
    seed: int,
    view_seed: int,
    recorded: ShrinkingRecord | None = None,
    on_tick: Callable[[Tick], None] | None = None,
    checkpoint: Path | None = None,
) -> tuple[nn.Module, TrainedSupernet]:
    """Return the network of `space` to `cut` out of a supernet that spent `budget_macs`, and that supernet.

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
        settings,
        data=workshop.data,
        seed=seed,
        view_seed=view_seed,
        device=workshop.device,
        recorded=recorded,
        on_tick=on_tick or (lambda tick: None),
        checkpoint=checkpoint,
        budget_macs=budget_macs,
    )
    return trained.scorer.cut(trained.supernet, trained.space.corner(cut)), trained


def cut_for(workshop: Workshop, job: Job, way: Way) -> tuple[nn.Module, float]:
    """Return the student of a final training as its supernet gives it, and the seconds that took.

    The supernet has what of the training's budget is not left to the student. Raises ConfigError where none holds the
    student, TrialError where its training fails.
    """
    training, route = job.recipe.training, way.route
    assert route == "shrink" or route == "grow"
    space = space_around(workshop.space, workshop.family, job.arch, way.choices, route)
    train = workshop.share(training.data_fraction, training.proxy)
    network, supernet = train_and_cut(
        workshop,
        space,
        workshop.family,
        train,
        job.recipe,
        cut=CUT[route],
        settings=SUPERNET_OF[route],
        budget_macs=3 * workshop.family.price(job.arch).macs * (training.epochs - way.epochs) * len(train),
        inherits=job.start == "inherited",
        seed=derive_seed(job.init_seed, "supernet"),
        view_seed=derive_seed(job.view_seed, "supernet"),
    )
    return network, supernet.train_seconds
