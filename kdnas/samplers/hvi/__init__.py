"""kdnas's own sampler: expected hypervolume improvement with everything cheap known exactly.

Expected improvement of the hypervolume over box decompositions as in Yang et al., "Efficient computation of expected
hypervolume improvement using box decomposition algorithms" (Journal of Global Optimization 2019); running trials are
believed to score what is predicted, as in Ginsbourger et al. (2010).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from pydantic import Field

from kdnas.core.arch import Scalar
from kdnas.core.improvement import FreeBoxes
from kdnas.core.objective import minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.space import Assignment
from kdnas.samplers import SAMPLERS, Ladder, SamplerContext, Step
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
_FEWEST_PAIRS = 3
"""Students that go through all rungs before it is asked what lower ones say."""
_FREE = 1e-3
"""Costs and shares of variance that count as nothing."""
_LOOKED_AT = 40
"""Candidates, the most gainful, of which it is asked what a lower rung explains."""
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
        self._chooses = False
        """Whether it is asked what to do next, so that it has to know what short scores are worth."""
        self._believes = True
        """Whether a proposal should add to what students of lower rungs are predicted to reach."""
        self._looked: tuple[bytes, tuple[Features, np.ndarray, Outlook]] | None = None

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
        if self._is_early(history):
            features, sample = self._look_around(history)
            ranked = self._by_design(sample, features, history)
        else:
            _, sample, outlook = self._look(history)
            ranked, _ = self._candidates(sample, history, outlook, outlook.boxes(believe=self._believes))
        if not len(ranked):  # nothing acceptable was met: ValidProposals looks further, from anywhere
            ranked = self._rng.integers(self._encoding.levels, size=(1, len(self._encoding.levels)))
        return self._encoding.assignment(ranked[0])

    def next_step(self, study: optuna.Study, ladder: Ladder) -> Step | None:
        """Return the step that should gain most hypervolume per full training.

        The first students go through all rungs, so that what a short score says is known before many are paid for.
        From then on a full training goes to whom it should gain most once as many students were scored below as double
        sampling asks for (`_wanted_below`); where no lower rung is worth its cost a new student passes none.
        """
        self._chooses = self._believes = True
        history = self._history(study)
        top = self._rungs - 1
        reached = self._reached(history)
        waiting = np.flatnonzero(history.eligible & (history.rung == reached) & (reached < top))
        if ladder.is_open and not self._is_tried(history):
            return Step(int(history.numbers[waiting[0]])) if len(waiting) else Step(None)
        if self._is_early(history):
            return Step(None) if ladder.is_open else None
        _, sample, outlook = self._look(history)
        boxes = outlook.boxes(believe=False)
        onwards = np.append(np.cumsum(ladder.costs[::-1])[::-1], 0.0)  # [r]: from rung r to the highest, r included
        rates = outlook.gains(history.codes[waiting], boxes) / onwards[reached[waiting] + 1]
        new, gains = self._candidates(sample, history, outlook, boxes)
        wanted = self._wanted_below(outlook, new[:_LOOKED_AT], ladder)
        begun = np.bincount(history.rung, minlength=self._rungs)
        for rung in np.flatnonzero(begun[:top] < wanted * (begun[top] + 1)).tolist():
            if rung == 0:
                if ladder.is_open and len(new):
                    return Step(None)
            elif len(below := np.flatnonzero(reached[waiting] == rung - 1)):
                return Step(int(history.numbers[waiting[below[rates[below].argmax()]]]))
        best = rates.max(initial=0.0)
        screened = len(waiting) and wanted.any()
        if len(new) and not screened and gains[0] / ladder.direct > best:
            self._believes = False  # who waits may never be trained on
            return Step(None, top)
        return Step(int(history.numbers[waiting[rates.argmax()]])) if best > 0 else None

    def _wanted_below(self, outlook: Outlook, codes: np.ndarray, ladder: Ladder) -> np.ndarray:
        """Return how many students should be scored at each lower rung [R - 1] for each of the highest, at most `eta`.

        As in double sampling (Cochran, "Sampling Techniques", 1977, section 12.7; over several levels Peherstorfer et
        al., "Optimal model management for multifidelity Monte Carlo estimation", 2016) that follows from a score's cost
        c, in full trainings, and the share of a full score's variance it explains: sqrt(share / (1 - share) / c), and
        none where the share is below 4 c / (1 + c)^2. The model says what it explains of students at `codes` [N, D].
        """
        costs = np.maximum(np.cumsum(ladder.costs[:-1]) / sum(ladder.costs), _FREE)
        share = np.array([outlook.explained(codes, rung) if len(codes) else 0.0 for rung in range(len(costs))])
        most = np.cumprod(ladder.etas[::-1])[::-1]
        wanted = np.minimum(np.sqrt(share / np.maximum(1 - share, _FREE) / costs), most)
        useless = (share < 4 * costs / (1 + costs) ** 2) & math.isfinite(ladder.direct)
        return np.asarray(np.where(useless, 0.0, wanted))

    def _is_tried(self, history: History) -> bool:
        """Whether enough students were scored at the lowest and at the highest rung to know what a short score says."""
        identity = self._encoding.identity(history.codes)
        lowest, highest = (
            np.unique(identity[history.eligible & (history.rung == rung)]) for rung in (0, self._rungs - 1)
        )
        return bool(np.isin(highest, lowest).sum() >= _FEWEST_PAIRS)

    def _reached(self, history: History) -> np.ndarray:
        """Return the highest rung [N] at which each trial's student was begun."""
        identity = self._encoding.identity(history.codes)
        highest = np.full(identity.max(initial=-1) + 1, -1)
        np.maximum.at(highest, identity, history.rung)
        return highest[identity]

    def _is_early(self, history: History) -> bool:
        return self._students(history) < self._startup or not history.eligible.any()

    def _students(self, history: History) -> int:
        """Return how many students were begun."""
        return len(np.unique(self._encoding.identity(history.codes)))

    def _history(self, study: optuna.Study) -> History:
        context = self._context
        return read_history(study.get_trials(deepcopy=False), self._encoding, context.objectives, context.fidelities)

    def _look(self, history: History) -> tuple[Features, np.ndarray, Outlook]:
        """Return the features, a sample [N, D] of what may be proposed, and the outlook; made once for a history."""
        stamp = b"".join(column.tobytes() for column in dataclasses.astuple(history))
        if self._looked is None or self._looked[0] != stamp:
            features, sample = self._look_around(history)
            cheap = [
                (objective.name, objective.minimised(1.0)) if objective.name in features.names else None
                for objective in self._context.objectives
            ]
            outlook = Outlook(
                features, history, cheap, self._reference, self._rungs, self._rng, weighs_rungs=self._chooses
            )
            self._looked = stamp, (features, sample, outlook)
        return self._looked[1]

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
        share = _van_der_corput(self._students(history) + 1) + self._rng.uniform(-_DESIGN_JITTER, _DESIGN_JITTER)
        target = np.quantile(cost, np.clip(share, 0.0, 1.0))
        near = np.abs(cost - target)
        band = near <= np.quantile(near, 0.05)
        alike = np.zeros(len(sample))
        if len(history):
            alike = (rows.levels @ features.rows(history.codes, 0).levels.T).max(axis=1)
        return sample[np.lexsort((alike, ~band))]

    def _candidates(
        self, sample: np.ndarray, history: History, outlook: Outlook, boxes: FreeBoxes
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (candidates [N, D], the most gainful first; their gains [N])."""
        parents = self._parents(history, outlook.values)
        pool, gains = sample, outlook.gains(sample, boxes)
        more = _variations(self._encoding, parents, _VARIATIONS, self._rng)
        for _ in range(1 + _ROUNDS):
            more = self._new(more, np.concatenate([history.codes, pool]))
            pool, gains = np.concatenate([pool, more]), np.concatenate([gains, outlook.gains(more, boxes)])
            more = _neighbours(self._encoding, pool[np.argsort(-gains, kind="stable")[:_LEADERS]])
        order = np.argsort(-gains, kind="stable")
        return pool[order], gains[order]

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
