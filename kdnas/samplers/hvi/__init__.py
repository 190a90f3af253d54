"""kdnas's own sampler: expected hypervolume improvement with everything cheap known exactly.

Expected improvement of the hypervolume over box decompositions as in Yang et al., "Efficient computation of expected
hypervolume improvement using box decomposition algorithms" (Journal of Global Optimization 2019); running trials are
believed to score what is predicted, as in Ginsbourger et al. (2010).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from pydantic import Field

from kdnas.core.arch import Scalar
from kdnas.core.objective import minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.space import Assignment
from kdnas.samplers import SAMPLERS, SamplerContext
from kdnas.samplers.hvi.encoding import Encoding, History, read_history
from kdnas.samplers.hvi.outlook import Features, Outlook

_DRAWS = 700
_ENOUGH = 100
"""Students that may be proposed, below which more is drawn."""
_MORE_DRAWS = 4
_FEWEST = 12
"""Students over which features can be standardised."""
_WHOLE = 2_000
"""Assignments up to which the whole space is looked at."""
_VARIATIONS = 500
_ROUNDS = 3
"""Of looking at the neighbours of the leaders."""
_LEADERS = 6
_DESIGN_JITTER = 0.1
"""Of a design's cost quantiles."""


@SAMPLERS.register
def hvi(context: SamplerContext, *, startup_trials: Annotated[int, Field(ge=1)] = 4) -> optuna.samplers.BaseSampler:
    """Model-based hypervolume improvement: fewest trainings; cheap costs known exactly, lower rungs learnt from."""
    return HypervolumeImprovement(context, startup_trials)


class HypervolumeImprovement(optuna.samplers.BaseSampler):
    """Proposes the student that is expected to add most hypervolume at the highest rung.

    The first `startup_trials` are spread over the quantiles of the cheap costs, each unlike those before it. After them
    a Gaussian process (`process`) models every objective that is not cheap, and every bound that was ever missed,
    failing included (`outlook`). Candidates are random students, variations of the front, and then, again and again,
    the neighbours of the most promising. A proposal is a function of the seed and the history alone.
    """

    reads_fidelities = True
    """Lower rungs are kept apart in the history that it is shown."""

    def __init__(self, context: SamplerContext, startup_trials: int):
        self._context = context
        self._startup = startup_trials
        self._rng = np.random.default_rng(context.seed)
        self._encoding = Encoding(context.space, context.tuned)
        self._rungs = max(len(context.fidelities), 1)
        self._reference = minimised([context.reference_point], context.objectives)[0]
        self._assigned: dict[bytes, Mapping[str, Scalar]] = {}
        self._priced: dict[bytes, Mapping[str, float]] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: the space is the context's."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a uniform draw, for a parameter outside the space."""
        outside = optuna.samplers.RandomSampler(seed=self._context.seed)
        return outside.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Assignment:
        """Return the proposal."""
        history = self._history(study)
        features, sample = self._look_around(history)
        few = len(history) < self._startup or not history.eligible.any()
        ranked = self._by_design(sample, features, history) if few else self._by_gain(sample, features, history)
        if not len(ranked):  # nothing acceptable was met: ValidProposals looks further, from anywhere
            ranked = self._rng.integers(self._encoding.levels, size=(1, len(self._encoding.levels)))
        return self._encoding.assignment(ranked[0])

    def promotion_gains(self, study: optuna.Study, numbers: Sequence[int]) -> np.ndarray:
        """Return the hypervolume [N] that each of these trials should add once trained at the highest rung."""
        trials = study.get_trials(deepcopy=False)
        history = self._history(study)
        features, _ = self._look_around(history)
        outlook = self._outlook(features, history)
        codes = self._encoding.codes([trials[number].params for number in numbers])
        return outlook.gains(codes, outlook.boxes(believe=False))

    def _history(self, study: optuna.Study) -> History:
        context = self._context
        return read_history(study.get_trials(deepcopy=False), self._encoding, context.objectives, context.fidelities)

    def _outlook(self, features: Features, history: History) -> Outlook:
        cheap = [
            (objective.name, objective.minimised(1.0)) if objective.name in features.names else None
            for objective in self._context.objectives
        ]
        return Outlook(features, history, cheap, self._reference, self._rungs, self._rng)

    def _prices(self, codes: np.ndarray) -> list[Mapping[str, float]]:
        result = []
        for row in codes:
            key = row.tobytes()
            if key not in self._priced:
                self._priced[key] = self._context.price(self._assignment(row))
            result.append(self._priced[key])
        return result

    def _assignment(self, row: np.ndarray) -> Mapping[str, Scalar]:
        """Return the assignment of codes [D], which is made once."""
        key = row.tobytes()
        if key not in self._assigned:
            self._assigned[key] = self._encoding.assignment(row)
        return self._assigned[key]

    def _look_around(self, history: History) -> tuple[Features, np.ndarray]:
        """Return the features, standardised over what may be proposed, and a sample [N, D] of that.

        Where constraints are tight more is drawn; where next to nothing meets them, all that is drawn is the measure.
        """
        drawn = _draws(self._encoding, _DRAWS, self._rng)
        sample = self._new(drawn, history.codes)
        for _ in range(_MORE_DRAWS if len(drawn) < _WHOLE else 0):
            if len(sample) >= _ENOUGH:
                break
            more = self._rng.integers(self._encoding.levels, size=(_DRAWS, len(self._encoding.levels)))
            sample = np.concatenate([sample, self._new(more, np.concatenate([history.codes, sample]))])
        meant = np.concatenate([sample, history.codes[history.eligible]])
        return Features(self._encoding, self._prices, meant if len(meant) >= _FEWEST else drawn, self._rungs), sample

    def _new(self, codes: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Return, in their order, one spelling of each of `codes` [N, D] that may be proposed, `seen` ones left out."""
        identity = self._encoding.identity(codes)
        _, first = np.unique(identity, return_index=True)
        fresh = codes[np.sort(first[~np.isin(identity[first], self._encoding.identity(seen))])]
        meant = [self._context.acceptable(self._assignment(row)) for row in fresh]
        return fresh[np.asarray(meant, dtype=bool)]

    def _by_design(self, sample: np.ndarray, features: Features, history: History) -> np.ndarray:
        """Return `sample` [N, D] in the order in which a design that is spread over costs would take it."""
        if not len(sample):
            return sample
        sample = self._rng.permutation(sample)
        rows = features.rows(sample, 0)
        cost = rows.costs.sum(axis=1)
        share = _van_der_corput(len(history) + 1) + self._rng.uniform(-_DESIGN_JITTER, _DESIGN_JITTER)
        target = np.quantile(cost, np.clip(share, 0.0, 1.0))
        near = np.abs(cost - target)
        band = near <= np.quantile(near, 0.05)
        alike = np.zeros(len(sample))
        if len(history):
            alike = (rows.levels @ features.rows(history.codes, 0).levels.T).max(axis=1)
        return sample[np.lexsort((alike, ~band))]

    def _by_gain(self, sample: np.ndarray, features: Features, history: History) -> np.ndarray:
        """Return candidates [N, D], the most gainful first."""
        outlook = self._outlook(features, history)
        boxes = outlook.boxes(believe=True)
        parents = self._parents(history, outlook.values)
        pool, gains = sample, outlook.gains(sample, boxes)
        more = _variations(self._encoding, parents, _VARIATIONS, self._rng)
        for _ in range(1 + _ROUNDS):
            more = self._new(more, np.concatenate([history.codes, pool]))
            pool, gains = np.concatenate([pool, more]), np.concatenate([gains, outlook.gains(more, boxes)])
            more = _neighbours(self._encoding, pool[np.argsort(-gains, kind="stable")[:_LEADERS]])
        return pool[np.argsort(-gains, kind="stable")]

    def _parents(self, history: History, values: np.ndarray) -> np.ndarray:
        """Return the codes [Q, D] of the front of each rung by the history's `values` [N, M]."""
        fronts = []
        for rung in range(self._rungs):
            here = np.flatnonzero(history.eligible & (history.rung == rung))
            fronts.append(here[non_dominated(values[here])])
        return history.codes[np.concatenate(fronts)]


def _van_der_corput(number: int) -> float:
    """Return member `number` (from 1) of the sequence 1/2, 1/4, 3/4, 1/8, ..., which fills [0, 1] evenly."""
    share, denominator = 0.0, 1.0
    while number:
        denominator *= 2
        number, digit = divmod(number, 2)
        share += digit / denominator
    return share


def _draws(encoding: Encoding, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return about `count` codes [N, D] of the whole space: all of a small one, else random draws and uniform ones.

    Uniform ones have the same level in every choice: the cheapest and the most expensive networks of a space are among
    them, which random draws miss.
    """
    levels = encoding.levels
    if np.prod(levels.astype(float)) <= _WHOLE:
        return np.indices(tuple(levels.tolist())).reshape(len(levels), -1).T
    drawn = rng.integers(levels, size=(count, len(levels)))
    uniform = np.minimum(np.arange(levels.max())[:, None], levels[None, :] - 1)
    return np.concatenate([uniform, drawn])


def _variations(encoding: Encoding, parents: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` codes [N, D] from `parents` [Q, D]: half crossed with another parent, then all mutated."""
    dimensions = len(encoding.levels)
    children = parents[rng.integers(len(parents), size=count)]
    others = parents[rng.integers(len(parents), size=count)]
    crossed = (rng.random((count, dimensions)) < 0.5) & (rng.random(count) < 0.5)[:, None]
    children = np.where(crossed, others, children)
    changes = rng.geometric(0.5, size=count)
    redrawn = rng.random((count, dimensions)).argsort(axis=1) < changes[:, None]
    return np.where(redrawn, rng.integers(encoding.levels, size=(count, dimensions)), children)


def _neighbours(encoding: Encoding, codes: np.ndarray) -> np.ndarray:
    """Return every code that differs in one dimension from one of `codes` [Q, D]."""
    result = []
    for column, levels in enumerate(encoding.levels):
        for level in range(levels):
            moved = codes[codes[:, column] != level]
            result.append(moved.copy())
            result[-1][:, column] = level
    return np.concatenate(result)
