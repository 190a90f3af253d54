"""Samplers: who proposes the next assignment. The contract is Optuna's own `BaseSampler`.

Every choice of the space is always proposed (inactive ones are dropped when the arch is made), so that a sampler sees
one static space; proposals that repeat a student or break a cheap constraint never reach the record
(`kdnas.study.proposals`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdnas.core.objective import Quantity
from kdnas.core.space import SearchSpace
from kdnas.registry import Registry

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class SamplerContext:
    """What a sampler may know: the space, the objectives in order, the trial budget, and a seed for this proposal."""

    space: SearchSpace
    objectives: tuple[Quantity, ...]
    trials: int
    seed: int


SAMPLERS: Registry[Callable[..., optuna.samplers.BaseSampler]] = Registry("sampler", __name__)
"""Members: `function(context: SamplerContext, *, options) -> optuna.samplers.BaseSampler`."""
