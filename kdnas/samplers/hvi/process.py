"""A Gaussian process over architectures at several fidelities, its hyperparameters a maximum a posteriori.

The covariance is a sum of what is known to matter in an architecture: a trend in log costs, a smooth function of costs
and one of operator counts, additive effects of single choices, and interactions between choices. Scores of two rungs
are correlated through a factor that falls with each rung between them, as in the autoregressive model of Kennedy and
O'Hagan (Biometrika 2000); what an architecture has of its own beyond all these is shared by its rungs too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

# name: (mean of the logarithm, its standard deviation), for unit-variance scores; see `_terms`.
_PRIORS = {
    "trend": (np.log(0.6), 0.8),
    "cost": (np.log(0.5), 0.8),
    "cost_length": (np.log(1.5), 0.6),
    "count": (np.log(0.5), 0.8),
    "count_length": (np.log(2.5), 0.6),
    "additive": (np.log(0.6), 0.8),
    "interaction": (np.log(0.7), 0.8),
    "interaction_length": (np.log(0.6), 0.6),
    "noise": (np.log(0.12), 0.8),
    "own": (np.log(0.2), 0.8),
    "decay": (np.log(0.2), 0.8),
    "own_decay": (np.log(0.4), 0.8),
    "scale": (0.0, 0.5),
}
_NAMES = tuple(_PRIORS)
_MEAN, _SPREAD = (np.array(column) for column in zip(*_PRIORS.values(), strict=True))
_OFFSET = 1.5
"""Standard deviation of the mean score, and of a rung's difference from it."""
_JITTER = 1e-6
_FEW = 8
"""Scores of a rung that say too little of its spread: that of the fullest rung is taken."""
_HEADROOM = 0.3
"""How far below the best score so far the warp ends, as a share of the distance from the best to the median."""


@dataclass(frozen=True)
class Rows:
    """What the surrogate sees of N students, each at a rung.

    `levels` [N, P], `costs` [N, C] and `counts` [N, G] are standardised features; `rung` [N] counts from 0, the lowest
    of `rungs`; rows of one student share their `identity` [N].
    """

    levels: np.ndarray
    costs: np.ndarray
    counts: np.ndarray
    rung: np.ndarray
    identity: np.ndarray
    rungs: int = 1

    def __len__(self) -> int:
        return len(self.rung)

    def __getitem__(self, index: np.ndarray) -> Rows:
        levels, costs, counts, rung, identity = (column[index] for column in self._columns)
        return Rows(levels, costs, counts, rung, identity, self.rungs)

    def joined(self, other: Rows) -> Rows:
        """Return these rows followed by `other`."""
        pairs = zip(self._columns, other._columns, strict=True)
        levels, costs, counts, rung, identity = (np.concatenate(pair) for pair in pairs)
        return Rows(levels, costs, counts, rung, identity, self.rungs)

    @property
    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.levels, self.costs, self.counts, self.rung, self.identity


@dataclass(frozen=True)
class Warp:
    """A shifted logarithm for each rung, y -> log(y - floor): spreads the good end (low y) and gathers the bad one.

    Accuracy saturates and fails without limit, so that its logarithmic distance to the best is closer to a sum of
    effects than it is itself. `floors` [rungs] is empty for the identity.
    """

    floors: np.ndarray

    def __call__(self, values: np.ndarray, rung: np.ndarray) -> np.ndarray:
        """Return `values` [N] of students at `rung` [N], warped."""
        return np.log(values - self.floors[rung]) if len(self.floors) else values

    def restored(self, warped: np.ndarray, rung: int) -> np.ndarray:
        """Return the values at `rung` that warp to `warped` [N]."""
        return self.floors[rung] + np.exp(warped) if len(self.floors) else warped


class Process:
    """A fitted process: predicts mean and standard deviation of the noise-free warped score at any rung."""

    def __init__(self, rows: Rows, warped: np.ndarray, hyper: np.ndarray, warp: Warp):
        self._rows, self._warped, self.hyper, self.warp = rows, warped, hyper, warp
        target, self._shift, self._unit = _standardised(warped)
        kernel = _covariance(rows, rows, hyper)
        kernel[np.diag_indices_from(kernel)] += np.exp(2 * hyper[_NAMES.index("noise")]) + _JITTER
        self._factor = cholesky(kernel, lower=True, check_finite=False)
        self._weights = cho_solve((self._factor, True), target, check_finite=False)

    @classmethod
    def fit(cls, rows: Rows, values: np.ndarray, limit: int, rng: np.random.Generator, *, warped: bool) -> Process:
        """Return the process of `values` [N] at `rows`; hyperparameters are fitted to at most `limit` of them."""
        some = rng.permutation(len(rows))[:limit] if len(rows) > limit else np.arange(len(rows))
        warp = Warp(_floors(rows, values) if warped else np.zeros(0))
        target = warp(values, rows.rung)
        return cls(rows, target, fit_hyper(rows[some], target[some]), warp)

    def predict(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Return (mean [N], standard deviation [N]) of the warped scores at `rows`."""
        cross = _covariance(rows, self._rows, self.hyper)
        mean = self._shift + self._unit * (cross @ self._weights)
        half = solve_triangular(self._factor, cross.T, lower=True, overwrite_b=True, check_finite=False)
        variance = _prior_variance(rows, self.hyper) - np.einsum("ij,ij->j", half, half)
        return mean, self._unit * np.sqrt(np.maximum(variance, 1e-10))

    def believing(self, rows: Rows) -> Process:
        """Return the process as it would be had `rows` scored what it predicts (the kriging believer)."""
        means, _ = self.predict(rows)
        return Process(self._rows.joined(rows), np.concatenate([self._warped, means]), self.hyper, self.warp)


def _standardised(warped: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return (standardised scores [N], their mean, their standard deviation)."""
    shift, unit = float(warped.mean()), float(warped.std()) or 1.0
    return (warped - shift) / unit, shift, unit


def _floors(rows: Rows, values: np.ndarray) -> np.ndarray:
    """Return, for each rung, a value below its best score by a share of the distance from there to the median."""
    floors = np.zeros(rows.rungs)
    for rung in range(rows.rungs):
        here = values[rows.rung == rung]
        here = here if len(here) else values
        many = here if len(here) >= _FEW else values[rows.rung == np.argmax(np.bincount(rows.rung))]
        span = float(np.median(many) - many.min() or many.std() or 1.0)
        floors[rung] = here.min() - _HEADROOM * span
    return floors


def fit_hyper(rows: Rows, warped: np.ndarray) -> np.ndarray:
    """Return the hyperparameters (logarithms) of highest posterior density given warped scores [N] at `rows`."""
    target, _, _ = _standardised(warped)
    free = _free(rows)
    known = _distances(rows, rows)
    identity, diagonal = np.eye(len(target)), np.diag_indices(len(target))

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        hyper = _MEAN.copy()
        hyper[free] = point
        kernel, slopes = _with_slopes(known, hyper)
        noise = np.exp(2 * hyper[_NAMES.index("noise")])
        kernel[diagonal] += noise + _JITTER
        try:
            factor = cholesky(kernel, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros(len(point))
        weights = cho_solve((factor, True), target, check_finite=False)
        inverse = cho_solve((factor, True), identity, check_finite=False)
        off = (hyper - _MEAN) / _SPREAD
        value = 0.5 * target @ weights + np.log(np.diag(factor)).sum() + 0.5 * off @ off
        outer = inverse - np.outer(weights, weights)
        slopes["noise"] = 2 * noise * identity
        slope = np.array([0.5 * np.vdot(outer, slopes[name]) if name in slopes else 0.0 for name in _NAMES])
        return value, (slope + off / _SPREAD)[free]

    bounds = [(m - 4 * s, m + 4 * s) for m, s in zip(_MEAN[free], _SPREAD[free], strict=True)]
    found = minimize(loss, _MEAN[free], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40})
    hyper = _MEAN.copy()
    hyper[free] = found.x
    return hyper


def _free(rows: Rows) -> np.ndarray:
    """Return which hyperparameters the rows can tell anything about."""
    idle = set()
    if len(np.unique(rows.rung)) < 2:
        idle |= {"own", "decay", "own_decay", "scale"}
    if rows.counts.shape[1] == 0:
        idle |= {"count", "count_length"}
    if rows.costs.shape[1] == 0:
        idle |= {"trend", "cost", "cost_length"}
    return np.array([name not in idle for name in _NAMES])


@dataclass(frozen=True)
class _RungDistances:
    """How two sets of rows differ in their rungs. Each is [N, N']."""

    steps: np.ndarray
    same: np.ndarray
    top: np.ndarray


@dataclass(frozen=True)
class _Distances:
    """What the covariance of two sets of rows is made of, before any hyperparameter. Each is [N, N']."""

    agreement: np.ndarray
    trend: np.ndarray
    cost: np.ndarray
    count: np.ndarray
    rungs: _RungDistances | None
    """None where there is one rung."""
    has_costs: bool
    has_counts: bool


def _distances(a: Rows, b: Rows) -> _Distances:
    rungs = None
    if a.rungs > 1:
        rungs = _RungDistances(
            np.abs(a.rung[:, None] - b.rung[None, :]).astype(float),
            (a.identity[:, None] == b.identity[None, :]).astype(float),
            (a.rung[:, None] + b.rung[None, :]).astype(float),
        )
    return _Distances(
        a.levels @ b.levels.T,
        a.costs @ b.costs.T / max(a.costs.shape[1], 1),
        _squared(a.costs, b.costs),
        _squared(a.counts, b.counts),
        rungs,
        a.costs.shape[1] > 0,
        a.counts.shape[1] > 0,
    )


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared distances [N, N'] of the rows of `a` and `b`, a mean over columns."""
    squared: np.ndarray = a @ b.T  # in place from here on: these are the largest arrays of a proposal
    squared *= -2.0
    squared += np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None, :]
    np.maximum(squared, 0.0, out=squared)
    squared /= max(a.shape[1], 1)
    return squared


class _Term(NamedTuple):
    """A summand of the covariance [N, N']; `exponent` is its logarithm's derivative by that of its `length`."""

    name: str
    value: np.ndarray
    length: str = ""
    exponent: np.ndarray | None = None


def _terms(known: _Distances, size: Mapping[str, float]) -> list[_Term]:
    """Return what two students share at the same rung, the mean score left out."""
    terms = []
    if known.has_costs:
        terms.append(_Term("trend", size["trend"] ** 2 * known.trend))
        exponent = known.cost / size["cost_length"] ** 2
        terms.append(_Term("cost", _falling(size["cost"], 0.5, exponent), "cost_length", exponent))
    if known.has_counts:
        exponent = known.count / size["count_length"] ** 2
        terms.append(_Term("count", _falling(size["count"], 0.5, exponent), "count_length", exponent))
    terms.append(_Term("additive", size["additive"] ** 2 * known.agreement))
    exponent = 1 - known.agreement
    np.maximum(exponent, 0.0, out=exponent)
    exponent /= size["interaction_length"]
    falling = _falling(size["interaction"], 1.0, exponent)
    return [*terms, _Term("interaction", falling, "interaction_length", exponent)]


def _falling(size: float, rate: float, exponent: np.ndarray) -> np.ndarray:
    """Return size^2 exp(-rate * exponent)."""
    value = np.multiply(exponent, -rate)
    np.exp(value, out=value)
    value *= size**2
    return value


def _sizes(hyper: np.ndarray) -> dict[str, float]:
    return dict(zip(_NAMES, np.exp(hyper).tolist(), strict=True))


def _combined(known: _Distances, size: Mapping[str, float], terms: Sequence[_Term]) -> np.ndarray:
    """Return the covariance [N, N'] that `terms` add up to, over the rungs."""
    smooth: np.ndarray = _OFFSET**2 + terms[0].value
    for term in terms[1:]:
        smooth += term.value
    if known.rungs is None:
        return smooth
    kept, own, scale = _rung_factors(known.rungs, size)
    return (smooth * kept + own) * scale + _OFFSET**2 * (known.rungs.steps == 0)


def _rung_factors(rungs: _RungDistances, size: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (what is kept between rungs, what a student has of its own, the rungs' scales), each [N, N']."""
    own = size["own"] ** 2 * rungs.same * np.exp(-size["own_decay"] * rungs.steps)
    return np.exp(-size["decay"] * rungs.steps), own, size["scale"] ** rungs.top


def _covariance(a: Rows, b: Rows, hyper: np.ndarray) -> np.ndarray:
    known, size = _distances(a, b), _sizes(hyper)
    return _combined(known, size, _terms(known, size))


def _with_slopes(known: _Distances, hyper: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the covariance and its derivative by each hyperparameter."""
    size = _sizes(hyper)
    terms = _terms(known, size)
    kernel = _combined(known, size, terms)
    slopes = {term.name: 2 * term.value for term in terms}
    slopes |= {term.length: term.value * term.exponent for term in terms if term.exponent is not None}
    if known.rungs is None:
        return kernel, slopes
    rungs = known.rungs
    kept, own, scale = _rung_factors(rungs, size)
    within = kernel - _OFFSET**2 * (rungs.steps == 0)
    slopes = {name: slope * kept * scale for name, slope in slopes.items()}
    slopes["decay"] = -size["decay"] * rungs.steps * (within - own * scale)
    slopes["own"] = 2 * own * scale
    slopes["own_decay"] = -size["own_decay"] * rungs.steps * own * scale
    slopes["scale"] = rungs.top * within
    return kernel, slopes


def _prior_variance(rows: Rows, hyper: np.ndarray) -> np.ndarray:
    size = _sizes(hyper)
    variance = np.full(len(rows), _OFFSET**2 + size["interaction"] ** 2)
    variance += size["additive"] ** 2 * np.einsum("ij,ij->i", rows.levels, rows.levels)
    if rows.costs.shape[1]:
        variance += size["cost"] ** 2
        variance += size["trend"] ** 2 * np.einsum("ij,ij->i", rows.costs, rows.costs) / rows.costs.shape[1]
    if rows.counts.shape[1]:
        variance += size["count"] ** 2
    if rows.rungs == 1:
        return variance
    return (variance + size["own"] ** 2) * size["scale"] ** (2.0 * rows.rung) + _OFFSET**2
