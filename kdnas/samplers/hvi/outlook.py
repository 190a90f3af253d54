"""What a student is expected to add: cheap objectives exact, the others by Gaussian processes over all rungs.

N students, M objectives, all minimised here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kdnas.core.improvement import FreeBoxes, exact_shortfall, expected_improvement, free_boxes
from kdnas.core.logarithms import above_zero, logarithmic
from kdnas.core.pareto import non_dominated
from kdnas.samplers.hvi.encoding import Encoding, History
from kdnas.samplers.hvi.process import Blend, Process, Rows

_FIT_LIMIT = 120
"""Scores to which hyperparameters are fitted."""
_DATA_LIMIT = {1: 400, 2: 400, 3: 320, 4: 240}
"""Scores that predictions of an objective rest on, by number of modelled objectives: a proposal has half a second."""
_BOUND_DATA_LIMIT = 400
"""Those of a bound."""
_FRONT_LIMIT = {1: 1_000, 2: 300, 3: 40, 4: 16}
"""Members of the front that improvement is measured against, by number of objectives."""
_FEW_FAILURES = 2
"""Students worse than the reference from which on it is learnt where students fail."""
_OUTLIER = 3.0
"""Standard deviations worse than what its cost buys beyond which a score counts as bad alone."""

Prices = Callable[[np.ndarray], list[Mapping[str, float]]]
"""Codes [N, D] to the cheap costs of each."""


class Features:
    """Turns codes into the rows of a process, standardised over a sample of the space."""

    def __init__(self, encoding: Encoding, prices: Prices, sample: np.ndarray, rungs: int):
        self._encoding, self._prices, self._rungs = encoding, prices, rungs
        self.names = sorted(prices(sample[:1])[0])
        costs = self._raw_costs(sample)
        self._positive = above_zero(costs)
        costs = logarithmic(costs, self._positive)
        _, counts = encoding.features(sample)
        self._centre, self._spread = costs.mean(axis=0), _nonzero(costs.std(axis=0))
        self._count_centre, self._count_spread = counts.mean(axis=0), _nonzero(counts.std(axis=0))

    def rows(self, codes: np.ndarray, rung: np.ndarray | int) -> Rows:
        """Return the rows of `codes` [N, D] at `rung`."""
        levels, counts = self._encoding.features(codes)
        return Rows(
            levels,
            (logarithmic(self._raw_costs(codes), self._positive) - self._centre) / self._spread,
            (counts - self._count_centre) / self._count_spread,
            np.broadcast_to(rung, len(codes)),
            self._encoding.identity(codes),
            self._rungs,
            self._encoding.dimension_of_level,
        )

    def cost(self, codes: np.ndarray, name: str) -> np.ndarray:
        """Return the cheap cost `name` [N] of `codes`."""
        return np.array([price[name] for price in self._prices(codes)], dtype=float)

    def _raw_costs(self, codes: np.ndarray) -> np.ndarray:
        rows = [[price[name] for name in self.names] for price in self._prices(codes)]
        return np.array(rows, dtype=float).reshape(len(codes), len(self.names))


class Outlook:
    """What students are expected to gain at the highest rung, given a history."""

    def __init__(
        self,
        features: Features,
        history: History,
        cheap: Sequence[tuple[str, float] | None],
        reference: np.ndarray,
        rungs: int,
        rng: np.random.Generator,
        *,
        weighs_rungs: bool = False,
    ):
        self._features, self._history, self._cheap = features, history, cheap
        self._reference, self._top = reference, rungs - 1
        rows = features.rows(history.codes, history.rung)
        limit = _DATA_LIMIT.get(sum(known is None for known in cheap), 200)
        self.values = history.values.copy()
        """[N, M]: the objectives of the history, those that are modelled without their noise."""
        self._blends: list[Blend | None] = []
        for column, known in enumerate(cheap):
            blend = None
            if known is None:
                blend, self.values[:, column] = _blend(
                    rows, history.values[:, column], history, rng, limit, weighs_rungs
                )
            self._blends.append(blend)
        self._gates = [_gate(rows, column, history, rng) for column in (*history.violations.T, self._worthless())]

    def _worthless(self) -> np.ndarray:
        """Return 1 [N] for students that trained to less than the reference, -1 for better ones, NaN if unknown.

        Where students fail is learnt apart from how good those are that do not: a model of both together expects
        something middling of each. All is unknown while fewer than two failed.
        """
        history = self._history
        trained = [column for column, known in enumerate(self._cheap) if known is None]
        values, bar = history.values[:, trained], self._reference[trained]
        known = history.eligible & (history.rung == self._top) & np.isfinite(values).all(axis=1)
        worthless = (values >= bar).any(axis=1)
        if np.count_nonzero(known & worthless) < _FEW_FAILURES or not np.any(known & ~worthless):
            return np.full(len(history), np.nan)
        return np.where(known, np.where(worthless, 1.0, -1.0), np.nan)

    def predicted(self, codes: np.ndarray) -> np.ndarray:
        """Return the objectives [N, M] that `codes` [N, D] are predicted to have at the highest rung."""
        rows = self._features.rows(codes, self._top)
        values = np.zeros((len(codes), len(self._cheap)))
        for column, (known, blend) in enumerate(zip(self._cheap, self._blends, strict=True)):
            if known is not None:
                values[:, column] = self._price(codes, known)
            elif blend is not None:
                values[:, column] = blend.expected(rows, self._top)
        return values

    def boxes(self, *, believe: bool) -> FreeBoxes:
        """Return what the known students leave undominated at the highest rung, the noise of their scores taken out.

        Students that were only scored at lower rungs, and running ones, stand where they are predicted to be if
        `believe`; else they are left out.
        """
        history = self._history
        identity = self._features.rows(history.codes, 0).identity
        scored = history.eligible & (history.rung == self._top)
        front = [self.values[scored]]
        hoped = (history.eligible & believe) | history.running
        hoped &= ~np.isin(identity, identity[scored])
        if hoped.any():
            front.append(self.predicted(history.codes[hoped]))
        points = np.concatenate(front)
        points = points[np.all(points < self._reference, axis=1)]
        points = points[non_dominated(points)]
        return free_boxes(_thinned(points, _FRONT_LIMIT.get(len(self._reference), 15)), self._reference)

    def _price(self, codes: np.ndarray, known: tuple[str, float]) -> np.ndarray:
        name, sign = known
        return sign * self._features.cost(codes, name)

    def explained(self, codes: np.ndarray, rung: int) -> float:
        """Return the share of the full scores' variance that scores of `codes` [N, D] at `rung` should explain."""
        rows, below = self._features.rows(codes, self._top), self._features.rows(codes, rung)
        return float(np.mean([blend.explained(below, rows) for blend in self._blends if blend is not None] or [0.0]))

    def gains(self, codes: np.ndarray, boxes: FreeBoxes) -> np.ndarray:
        """Return the expected hypervolume [N] that each of `codes` [N, D] adds.

        One that may miss a bound, or turn out worse than the reference, adds less.
        """
        rows = self._features.rows(codes, self._top)
        shortfalls = [
            exact_shortfall(np.zeros(len(codes)) if known is None else self._price(codes, known))
            if blend is None
            else blend.shortfall(rows, self._top)
            for known, blend in zip(self._cheap, self._blends, strict=True)
        ]
        gains = expected_improvement(shortfalls, len(codes), boxes)
        for gate in self._gates:
            if gate is not None:
                gains = gains * gate.chance_below(0.0, rows, self._top)
        return gains


def _blend(
    rows: Rows, values: np.ndarray, history: History, rng: np.random.Generator, limit: int, weighs_rungs: bool
) -> tuple[Blend | None, np.ndarray]:
    """Return the model of an objective, running trials believed, and `values` [N] without their noise.

    It rests on at most `limit` scores; the others are returned as they are. None while nothing is known.
    """
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return None, values
    target, excess = _tamed(rows[known], values[known])
    if len(known) > limit:  # half the best for their cost, half at random
        best = np.argsort(excess)[: limit // 2]
        rest = np.setdiff1d(np.arange(len(known)), best)
        kept = np.concatenate([best, rng.choice(rest, limit - len(best), replace=False)])
        known, target = known[kept], target[kept]
    blend = Blend.fit(rows[known], target, _FIT_LIMIT, rng, weighs_rungs=weighs_rungs)
    noise_free = values.copy()
    noise_free[known] += blend.noise_free() - target
    unknown = np.flatnonzero(history.running & ~np.isfinite(values))
    return (blend.believing(rows[unknown]) if len(unknown) else blend), noise_free


def _gate(rows: Rows, missed: np.ndarray, history: History, rng: np.random.Generator) -> Process | None:
    """Return the model of by how much a bound is `missed` [N], running trials believed; None while that is not known.

    It rests on at most `_BOUND_DATA_LIMIT` trials.
    """
    known = np.flatnonzero(np.isfinite(missed))
    if not len(known):
        return None
    if len(known) > _BOUND_DATA_LIMIT:
        known = known[rng.choice(len(known), _BOUND_DATA_LIMIT, replace=False)]
    process = Process.fit(rows[known], missed[known], _FIT_LIMIT, rng)
    unknown = np.flatnonzero(history.running & ~np.isfinite(missed))
    return process.believing(rows[unknown]) if len(unknown) else process


def _tamed(rows: Rows, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `values` [N] (minimised) with outliers on the bad side brought in, and how far each exceeds its trend.

    A network that does not train scores far below what its cost buys; how far carries no information on the others.
    """
    values = values.copy()
    excess = np.zeros(len(values))
    for rung in np.unique(rows.rung):
        here = np.flatnonzero(rows.rung == rung)
        design = np.column_stack([np.ones(len(here)), rows.costs[here], rows.costs[here] ** 2])
        ridge = np.diag([0.0, *[1.0] * (design.shape[1] - 1)])
        for _ in range(3):
            trend = design @ np.linalg.lstsq(design.T @ design + ridge, design.T @ values[here], rcond=None)[0]
            excess[here] = values[here] - trend
            spread = 1.4826 * np.median(np.abs(excess[here] - np.median(excess[here])))
            if len(here) > 8 and spread > 0:
                values[here] = np.minimum(values[here], trend + np.median(excess[here]) + _OUTLIER * spread)
    return values, excess


def _thinned(front: np.ndarray, limit: int) -> np.ndarray:
    """Return at most `limit` rows of `front` [N, M], spread as far from each other as can be, the extremes first."""
    if len(front) <= limit:
        return front
    low, high = front.min(axis=0), front.max(axis=0)
    places = (front - low) / _nonzero(high - low)
    kept = list(dict.fromkeys(places.argmin(axis=0).tolist()))
    distance = np.min([np.linalg.norm(places - places[index], axis=1) for index in kept], axis=0)
    while len(kept) < limit:
        kept.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(places - places[kept[-1]], axis=1))
    return front[kept]


def _nonzero(spread: np.ndarray) -> np.ndarray:
    return np.where(spread > 0, spread, 1.0)
