"""The front that a block library predicts, solved exactly; then what hvi adds, which reads the predicted losses too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from pydantic import Field

from kdnas.core.arch import Scalar
from kdnas.core.block_library import BlockLibrary, Solved
from kdnas.core.space import Assignment
from kdnas.errors import ConfigError, Problem
from kdnas.samplers import SAMPLERS, SamplerContext

PREDICTED = "block_loss"
"""The name of a student's predicted loss among its costs in hvi."""
_FLOOR = 1e-3
"""Losses below this share of the largest entry's are all alike: noise decides there, which a logarithm would show."""


@SAMPLERS.register
def blocks(
    context: SamplerContext, *, members: Annotated[int, Field(ge=1, le=1000)] = 16
) -> optuna.samplers.BaseSampler:
    """Students cut out of their teacher: the front that a library of its blocks predicts, exactly; then hvi."""
    if context.library is None:
        what = "blocks solves a library of the teacher's blocks, and students here are not made of those"
        raise ConfigError(Problem("sampler", what, "students cut out of their teacher (`space: {derive: teacher}`)"))
    return SolvedFront(context, context.library, members)


class SolvedFront(optuna.samplers.BaseSampler):
    """Proposes the best students under `members` budgets, spread evenly; then what hvi makes of their scores.

    The budgets are of the first cheap objective, `macs` where there is none. Tuned settings are drawn at random until
    hvi proposes.
    """

    reads_fidelities = True
    """As hvi does."""

    def __init__(self, context: SamplerContext, library: BlockLibrary, members: int):
        self._context, self._library, self._members = context, library, members
        self._random = optuna.samplers.RandomSampler(seed=context.seed)
        top = max((abs(entry.loss) for entry in library.entries), default=0.0)
        self._floor = max(_FLOOR * top, 1e-9)
        self._refining: optuna.samplers.BaseSampler = SAMPLERS.build(
            "hvi", dataclasses.replace(context, price=self._price)
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: the space is the context's."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Assignment:
        """Return the next member of the solved front that is acceptable, else what hvi proposes."""
        drawn = {
            name: self._random.sample_independent(study, trial, name, distribution)
            for name, distribution in self._context.tuned.items()
        }
        for solved in self._in_turn():
            proposal = {choice.name: solved.assignment[choice.name] for choice in self._context.space.choices}
            if self._context.acceptable({**proposal, **drawn}) and not self._was_proposed(study, proposal):
                return {**proposal, **drawn}
        return self._refining.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a uniform draw, for a parameter outside the space."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _in_turn(self) -> list[Solved]:
        """Return the solved front: its middle, then the middles of its halves at random, and so on."""
        cheap = [one.name for one in self._context.objectives if one.name in self._library.costs]
        lead = cheap[0] if cheap else "macs"
        front = self._library.front(lead, self._context.limits, count=self._members)
        draws = np.random.default_rng(self._context.seed)
        order: list[Solved] = []
        parts = [(0, len(front))]
        while parts := [(low, high) for low, high in parts if low < high]:
            middles = [(low + high) // 2 for low, high in parts]
            order += [front[index] for index in draws.permutation(middles)]
            parts = [
                half
                for (low, high), middle in zip(parts, middles, strict=True)
                for half in ((low, middle), (middle + 1, high))
            ]
        return order

    def _was_proposed(self, study: optuna.Study, proposal: Mapping[str, Scalar]) -> bool:
        """Whether a member was proposed before: with tuned settings a student may be, again and again."""
        return bool(self._context.tuned) and any(
            proposal.items() <= trial.params.items() for trial in study.get_trials(deepcopy=False)
        )

    def _price(self, assignment: Mapping[str, Scalar]) -> Mapping[str, float]:
        choices = {name: value for name, value in assignment.items() if name in self._library.choices}
        return {**self._context.price(assignment), PREDICTED: max(self._library.loss(choices), self._floor)}
