"""Samplers: who proposes the next assignment. The contract is Optuna's own `BaseSampler`.

Every choice of the space is always proposed (inactive ones are dropped when the arch is made), so that a sampler gets
one static space; proposals that repeat a student or break a cheap constraint never reach the record
(`kdnas.controller.proposals`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from kdnas.core.arch import Scalar
from kdnas.core.block_library import BlockLibrary
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import Constraint, Quantity
from kdnas.core.space import SearchSpace
from kdnas.registry import Registry

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class SamplerContext:
    """What a sampler may use, in addition to the history that Optuna hands it.

    The history's trials carry user attributes: `fidelity` (how much training the values have seen) and
    `result["values"]` (every quantity known of the student, objectives or not).
    """

    space: SearchSpace
    objectives: tuple[Quantity, ...]
    """In the order of the history's values."""
    trials: int
    """The trial budget."""
    seed: int
    """For this proposal."""
    price: Callable[[Mapping[str, Scalar]], Mapping[str, float]]
    """The cheap costs of a proposal, by quantity; microseconds."""
    acceptable: Callable[[Mapping[str, Scalar]], bool]
    """Whether a proposal is a new student within the cheap constraints."""
    reference_point: Mapping[str, float]
    """By objective, in its own unit and direction: what the run's hypervolume is measured from."""
    fidelities: tuple[Fidelity, ...] = ()
    """The rungs of the search, lowest first; empty where every trial has the same fidelity."""
    tuned: Mapping[str, BaseDistribution] = field(default_factory=dict)
    """Training settings that are proposed with the architecture, by dotted name."""
    limits: tuple[Constraint, ...] = ()
    """The bounds on costs that `acceptable` checks."""
    library: BlockLibrary | None = None
    """The losses and costs of the teacher's blocks, where the study asks for them and students are made of those."""


@dataclass(frozen=True)
class Ladder:
    """What may be done next in a search with R rungs, and what it costs in full trainings; rungs lowest first."""

    costs: tuple[float, ...]
    """[R]: of a training at a rung, for a student that has been at the one below."""
    direct: float
    """Of a new student's training at the highest rung; infinite where it would pass the lower ones all the same."""
    etas: tuple[float, ...]
    """[R - 1]: at most so many students of a rung for one of the next."""
    is_open: bool = True
    """Whether new students may begin at the lowest rung."""


class Step(NamedTuple):
    """What is worth doing next: a longer training of a student, or a new one's at a rung."""

    promoted: int | None
    """The number of the trial whose student is trained at the next rung; None for a new student."""
    rung: int = 0
    """Where the new student begins."""


@runtime_checkable
class ChoosesSteps(Protocol):
    """A sampler that itself knows whether a short training, a longer one or a new student is worth most."""

    def next_step(self, study: optuna.Study, ladder: Ladder) -> Step | None:
        """Return what to do next; None where nothing that is possible promises a gain."""


SAMPLERS: Registry[Callable[..., optuna.samplers.BaseSampler]] = Registry("sampler", __name__, "context")
"""Members: `function(context: SamplerContext, *, options) -> optuna.samplers.BaseSampler`."""
