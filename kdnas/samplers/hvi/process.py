"""A Gaussian process over architectures at several fidelities, its hyperparameters a maximum a posteriori.

The covariance is a sum of what is known to matter in an architecture: a trend in log costs, a smooth function of costs
and one of operator counts, additive effects of single choices, and interactions between choices. In the last two each
dimension has a weight of its own (automatic relevance determination: Neal, 1996). Scores of two rungs are correlated
through a factor that falls with each rung between them, as in the autoregressive model of Kennedy and O'Hagan
(Biometrika 2000). Interactions have a further one: a short score that follows costs may say nothing of what is left,
for which alone it is paid. What an architecture has of its own beyond all these is shared by its rungs too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import expit, log_ndtr, ndtr

from kdnas.core.improvement import Shortfall

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
    "interaction_decay": (np.log(0.3), 1.0),
    "own_decay": (np.log(0.4), 0.8),
    "scale": (0.0, 0.5),
}
_NAMES = tuple(_PRIORS)
_MEAN, _SPREAD = (np.array(column) for column in zip(*_PRIORS.values(), strict=True))
_WEIGHT_SPREAD = 0.5
"""Standard deviation of the logarithm of a dimension's weight, which is 0 in the mean."""
_OWN_SHARE = 0.5
"""Of the variance that no feature explains: what is the student's own, and would come again; the rest is noise."""
_OFFSET = 1.5
"""Standard deviation of the mean score, and of a rung's difference from it."""
_JITTER = 1e-6
_FEW = 8
"""With so few scores of a rung its spread is not estimated: that of the fullest rung is taken."""
_HEADROOMS = (0.3, 1.0, 3.0, None)
"""How far below the best score so far the warp may end, as shares of the distance from the best to the median.

None is no warp. Where scores saturate is not known while they rise: one value for all shuts out the best students of
some problems, and does nothing on others.
"""
_FEWEST_TRUSTED = 3
"""Scores of the highest rung from which on it is learnt how far lower rungs can be trusted."""
_UNTRIED = 0.75
"""How far they are trusted before."""
_NEGLIGIBLE = 0.02
"""Weight below which a warp is left out."""


@dataclass(frozen=True)
class Rows:
    """The surrogate's data on N students, each at a rung.

    `levels` [N, P], `costs` [N, C] and `counts` [N, G] are standardised features; `rung` [N] counts from 0, the lowest
    of `rungs`; rows of one student share their `identity` [N].
    """

    levels: np.ndarray
    costs: np.ndarray
    counts: np.ndarray
    rung: np.ndarray
    identity: np.ndarray
    rungs: int = 1
    dimensions: np.ndarray | None = None
    """[P]: the dimension that each column of `levels` belongs to; None: all belong to one."""

    def __len__(self) -> int:
        return len(self.rung)

    def __getitem__(self, index: np.ndarray) -> Rows:
        levels, costs, counts, rung, identity = (column[index] for column in self._columns)
        return Rows(levels, costs, counts, rung, identity, self.rungs, self.dimensions)

    def joined(self, other: Rows) -> Rows:
        """Return these rows followed by `other`."""
        pairs = zip(self._columns, other._columns, strict=True)
        levels, costs, counts, rung, identity = (np.concatenate(pair) for pair in pairs)
        return Rows(levels, costs, counts, rung, identity, self.rungs, self.dimensions)

    def alone(self) -> Rows:
        """Return the rows as those of a search without rungs."""
        return dataclasses.replace(self, rung=np.zeros(len(self), dtype=int), rungs=1)

    @property
    def dimension_count(self) -> int:
        """How many dimensions the columns of `levels` belong to."""
        return 1 if self.dimensions is None else int(self.dimensions[-1]) + 1

    def weighted(self, weights: np.ndarray) -> Rows:
        """Return the rows with the agreement in each dimension multiplied by its weight [D]."""
        scale = np.sqrt(weights)[0 if self.dimensions is None else self.dimensions]
        return dataclasses.replace(self, levels=self.levels * scale)

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

    def restored(self, warped: np.ndarray, rung: np.ndarray | int) -> np.ndarray:
        """Return the values at `rung` that warp to `warped` [N]."""
        return self.floors[rung] + np.exp(warped) if len(self.floors) else warped


class Process:
    """A fitted process of the scores under one warp: predicts a new student's mean and standard deviation at any rung.

    `evidence` is the logarithm of how probable it finds the unwarped scores that its hyperparameters were fitted to.
    """

    def __init__(self, rows: Rows, warped: np.ndarray, hyper: np.ndarray, warp: Warp, evidence: float = 0.0):
        self._rows, self._warped, self.hyper, self.warp, self.evidence = rows, warped, hyper, warp, evidence
        target, self._shift, self._unit = _standardised(warped)
        self._noise = float(np.exp(2 * hyper[_NAMES.index("noise")]))
        kernel = _covariance(rows, rows, hyper)
        kernel[np.diag_indices_from(kernel)] += self._noise + _JITTER
        self._factor = cholesky(kernel, lower=True, check_finite=False)
        self._weights = cho_solve((self._factor, True), target, check_finite=False)

    @classmethod
    def fit(
        cls, rows: Rows, values: np.ndarray, limit: int, rng: np.random.Generator, headroom: float | None = None
    ) -> Process:
        """Return the process of `values` [N] at `rows`; hyperparameters are fitted to at most `limit` of them."""
        some = rng.permutation(len(rows))[:limit] if len(rows) > limit else np.arange(len(rows))
        warp = Warp(np.zeros(0) if headroom is None else _floors(rows, values, headroom))
        warped = warp(values, rows.rung)
        hyper, density = fit_hyper(rows[some], warped[some])
        jacobian = -len(some) * np.log(_standardised(warped[some])[2])
        if headroom is not None:
            jacobian -= float(warped[some].sum())
        return cls(rows, warped, hyper, warp, density + jacobian)

    def predict(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Return (mean [N], standard deviation [N]) of the noise-free warped scores of new students at `rows`."""
        rows = self._seen(rows)
        cross = _covariance(rows, self._rows, self.hyper)
        mean = self._shift + self._unit * (cross @ self._weights)
        half = solve_triangular(self._factor, cross.T, lower=True, overwrite_b=True, check_finite=False)
        variance = _prior_variance(rows, self.hyper) - np.einsum("ij,ij->j", half, half)
        return mean, self._unit * np.sqrt(np.maximum(variance, 1e-10) + _OWN_SHARE * self._noise)

    def believing(self, rows: Rows) -> Process:
        """Return the process as it would be had `rows` scored what it predicts (the kriging believer)."""
        means, _ = self.predict(rows)
        return Process(
            self._rows.joined(self._seen(rows)), np.concatenate([self._warped, means]), self.hyper, self.warp
        )

    def noise_free(self) -> np.ndarray:
        """Return what the scores [N] that the process rests on are expected to be without their noise."""
        warped = self._warped - self._unit * (1 - _OWN_SHARE) * self._noise * self._weights
        return self.warp.restored(warped, self._rows.rung)

    @property
    def is_alone(self) -> bool:
        """Whether it knows one rung alone."""
        return self._rows.rungs == 1

    def expected(self, rows: Rows, rung: int) -> np.ndarray:
        """Return the median score [N] of new students at `rows`, all of `rung`."""
        return self.warp.restored(self.predict(rows)[0], 0 if self.is_alone else rung)

    def _floor(self, rung: int) -> float:
        return float(self.warp.floors[0 if self.is_alone else rung])

    def _seen(self, rows: Rows) -> Rows:
        return rows.alone() if self.is_alone else rows

    def left_out_density(self, rung: int) -> np.ndarray:
        """Return the logarithms of how probable each score at `rung` [n] is, given all others (unwarped).

        Closed form: Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), section 5.4.2.
        """
        here = np.ones(len(self._rows), dtype=bool) if self.is_alone else self._rows.rung == rung
        inverse = cho_solve((self._factor, True), np.eye(len(self._rows)), check_finite=False)
        variance = 1.0 / np.diag(inverse)
        density = -0.5 * (np.log(2 * np.pi * variance) + self._weights**2 * variance) - np.log(self._unit)
        return (density - (self._warped if len(self.warp.floors) else 0.0))[here]

    def chance_below(self, edge: float, rows: Rows, rung: int) -> np.ndarray:
        """Return the probability [N] that students at `rows`, all of `rung`, score below `edge`."""
        mean, spread = self.predict(rows)
        if not len(self.warp.floors):
            return np.asarray(ndtr((edge - mean) / spread))
        room = edge - self._floor(rung)
        return np.asarray(ndtr((np.log(room) - mean) / spread)) if room > 0 else np.zeros(len(rows))

    def explained(self, below: Rows, rows: Rows) -> np.ndarray:
        """Return the share [N] of the variance of the scores at `rows` that those at `below` should explain.

        `below` are the same students at a lower rung, where they have not been scored.
        """
        if self.is_alone:
            return np.zeros(len(rows))
        both = solve_triangular(
            self._factor, _covariance(below.joined(rows), self._rows, self.hyper).T, lower=True, check_finite=False
        )
        half, other = both[:, : len(below)], both[:, len(below) :]
        shared = np.diag(_covariance(below, rows, self.hyper)) - np.einsum("ij,ij->j", half, other)
        short = np.maximum(_prior_variance(below, self.hyper) - np.einsum("ij,ij->j", half, half), 1e-10) + self._noise
        spread = self.predict(rows)[1] / self._unit
        return np.minimum(shared**2 / short / spread**2, 1.0)

    def shortfall(self, rows: Rows, rung: int) -> Shortfall:
        """Return the expected shortfall at `rows`, all of `rung`: normal, or lognormal above the warp's floor."""
        mean, spread = self.predict(rows)
        if not len(self.warp.floors):
            return _normal_shortfall(mean, spread)
        return _lognormal_shortfall(mean, spread, self._floor(rung))


def _normal_shortfall(mean: np.ndarray, spread: np.ndarray) -> Shortfall:
    mean, spread = mean[:, None], spread[:, None]

    def shortfall(edges: np.ndarray) -> np.ndarray:
        z = (edges - mean) / spread
        result: np.ndarray = (edges - mean) * ndtr(z) + spread * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        return result

    return shortfall


def _lognormal_shortfall(mean: np.ndarray, spread: np.ndarray, floor: float) -> Shortfall:
    mean, spread = mean[:, None], spread[:, None]

    def shortfall(edges: np.ndarray) -> np.ndarray:
        room = np.maximum(edges - floor, 1e-300)
        z = (np.log(room) - mean) / spread
        result: np.ndarray = room * ndtr(z) - np.exp(mean + 0.5 * spread**2 + log_ndtr(z - spread))
        return result

    return shortfall


class Blend:
    """Processes of the same scores under several warps, each weighted by its evidence.

    Where rungs are weighed there are those of all scores and, beside them, those of the highest rung's alone. How far
    lower rungs are trusted, the share of the first, is learnt from the students that were scored at the highest: by how
    probable each kind of process finds their scores, all other scores known (leave one out).
    """

    def __init__(self, parts: Sequence[tuple[float, Process]], whole: int, trust: float = 1.0):
        self.parts = parts
        self._whole = whole
        """How many of the parts, the first, rest on all scores."""
        self.trust = trust
        """How probable it is, from what was scored at the highest rung, that the lower ones say something of it."""

    @classmethod
    def fit(
        cls, rows: Rows, values: np.ndarray, limit: int, rng: np.random.Generator, *, weighs_rungs: bool = False
    ) -> Blend:
        """Return the blend of `values` [N] at `rows`; hyperparameters are fitted to at most `limit` of them.

        Lower rungs are trusted whole unless it `weighs_rungs`.
        """
        seed = int(rng.integers(2**32))  # the same scores for every warp, so that their evidence compares
        whole = _weighted(rows, values, limit, seed)
        highest = rows.rung == rows.rungs - 1
        if not weighs_rungs or highest.all() or np.count_nonzero(highest) < _FEWEST_TRUSTED:
            return cls(whole, len(whole), 1.0 if highest.all() else _UNTRIED)
        alone = _weighted(rows[highest].alone(), values[highest], limit, seed)
        top = rows.rungs - 1
        with_lower, without = (
            float(np.logaddexp.reduce([np.log(weight) + part.left_out_density(top) for weight, part in parts]).sum())
            for parts in (whole, alone)
        )
        trust = float(expit(with_lower - without))
        shared = [(trust * weight, part) for weight, part in whole]
        return cls([*shared, *(((1 - trust) * weight, part) for weight, part in alone)], len(whole), trust)

    def expected(self, rows: Rows, rung: int) -> np.ndarray:
        """Return the scores [N] that are expected of new students at `rows`, all of `rung`: a blend of medians."""
        return _blended(self.parts, [part.expected(rows, rung) for _, part in self.parts])

    def noise_free(self) -> np.ndarray:
        """Return what the scores [N] that the processes rest on are expected to be without their noise."""
        whole = self.parts[: self._whole]
        return _blended(whole, [part.noise_free() for _, part in whole])

    def believing(self, rows: Rows) -> Blend:
        """Return the blend as it would be had `rows` scored what each process predicts."""
        return Blend([(weight, part.believing(rows)) for weight, part in self.parts], self._whole, self.trust)

    def explained(self, below: Rows, rows: Rows) -> float:
        """Return the share of the variance at `rows` that scores at `below` should explain, a mean over students."""
        return float(_blended(self.parts, [part.explained(below, rows) for _, part in self.parts]).mean())

    def shortfall(self, rows: Rows, rung: int) -> Shortfall:
        """Return the expected shortfall at `rows`, all of `rung`."""
        shortfalls = [part.shortfall(rows, rung) for _, part in self.parts]
        return lambda edges: _blended(self.parts, [shortfall(edges) for shortfall in shortfalls])


def _weighted(rows: Rows, values: np.ndarray, limit: int, seed: int) -> list[tuple[float, Process]]:
    """Return the process under each warp that counts, with its weight; weights add up to 1."""
    parts = [Process.fit(rows, values, limit, np.random.default_rng(seed), headroom) for headroom in _HEADROOMS]
    evidence = np.array([part.evidence for part in parts])
    weights = np.exp(evidence - evidence.max())
    weights = np.where(weights < _NEGLIGIBLE * weights.sum(), 0.0, weights)
    weights /= weights.sum()
    return [(float(weight), part) for weight, part in zip(weights, parts, strict=True) if weight]


def _blended(parts: Sequence[tuple[float, Process]], values: Sequence[np.ndarray]) -> np.ndarray:
    weights = np.array([weight for weight, _ in parts])
    return np.einsum("b,b...->...", weights / weights.sum(), np.stack(values))


def _standardised(warped: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return (standardised scores [N], their mean, their standard deviation)."""
    shift, unit = float(warped.mean()), float(warped.std()) or 1.0
    return (warped - shift) / unit, shift, unit


def _floors(rows: Rows, values: np.ndarray, headroom: float) -> np.ndarray:
    """Return, for each rung, a value below its best score by a share of the distance from there to the median."""
    floors = np.zeros(rows.rungs)
    for rung in range(rows.rungs):
        here = values[rows.rung == rung]
        here = here if len(here) else values
        many = here if len(here) >= _FEW else values[rows.rung == np.argmax(np.bincount(rows.rung))]
        span = float(np.median(many) - many.min() or many.std() or 1.0)
        floors[rung] = here.min() - headroom * span
    return floors


def fit_hyper(rows: Rows, warped: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the hyperparameters of highest posterior density given warped scores [N] at `rows`, and that density.

    Both are logarithms; the density is that of the standardised scores.
    """
    target, _, _ = _standardised(warped)
    centre, spread = _prior(rows)
    free = np.concatenate([_free(rows), np.full(rows.dimension_count, rows.dimension_count > 1)])
    known, stack = _distances(rows, rows), _agreements(rows)
    identity, diagonal = np.eye(len(target)), np.diag_indices(len(target))

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        hyper = centre.copy()
        hyper[free] = point
        here = _weighted_distances(known, stack, _weights(hyper))
        kernel, slopes = _with_slopes(here, hyper)
        noise = np.exp(2 * hyper[_NAMES.index("noise")])
        kernel[diagonal] += noise + _JITTER
        try:
            factor = cholesky(kernel, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros(len(point))
        alpha = cho_solve((factor, True), target, check_finite=False)
        inverse = cho_solve((factor, True), identity, check_finite=False)
        off = (hyper - centre) / spread
        value = 0.5 * target @ alpha + np.log(np.diag(factor)).sum() + 0.5 * off @ off
        outer = inverse - np.outer(alpha, alpha)
        slopes["noise"] = 2 * noise * identity
        slope = [0.5 * np.vdot(outer, slopes[name]) if name in slopes else 0.0 for name in _NAMES]
        slope += _weight_slopes(here, hyper, stack, 0.5 * outer)
        return value, (np.array(slope) + off / spread)[free]

    bounds = [(m - 4 * s, m + 4 * s) for m, s in zip(centre[free], spread[free], strict=True)]
    found = minimize(loss, centre[free], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40})
    hyper = centre.copy()
    hyper[free] = found.x
    return hyper, -float(found.fun)


def _prior(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, standard deviation) of the hyperparameters: the named ones, then a weight of each dimension."""
    count = rows.dimension_count
    return np.concatenate([_MEAN, np.zeros(count)]), np.concatenate([_SPREAD, np.full(count, _WEIGHT_SPREAD)])


def _agreements(rows: Rows) -> np.ndarray:
    """Return the agreement [D, N * N] of the rows in each dimension."""
    blocks = (
        [rows.levels]
        if rows.dimensions is None
        else [rows.levels[:, rows.dimensions == dimension] for dimension in range(rows.dimension_count)]
    )
    return np.stack([(block @ block.T).ravel() for block in blocks])


def _weighted_distances(known: _Distances, stack: np.ndarray, weights: np.ndarray) -> _Distances:
    """Return `known` with the agreement that dimensions of these `weights` [D] add up to."""
    agreement = (weights @ stack).reshape(known.agreement.shape)
    return dataclasses.replace(known, agreement=agreement, full=float(weights.mean()))


def _weight_slopes(known: _Distances, hyper: np.ndarray, stack: np.ndarray, outer: np.ndarray) -> list[float]:
    """Return the sum over pairs of `outer` [N, N] times the covariance's derivative by each weight's logarithm."""
    weights = _weights(hyper)
    size = _sizes(hyper)
    terms = {term.name: term.value for term in _terms(known, size)}
    through = outer * terms["interaction"] / size["interaction_length"]
    if known.rungs is not None:
        factors = _rung_factors(known.rungs, size)
        outer, through = (each * factors.kept * factors.scale for each in (outer, through * factors.fine))
    slope = stack @ (size["additive"] ** 2 * outer + through).ravel() - through.sum() / len(weights)
    return (weights * slope).tolist()


def _free(rows: Rows) -> np.ndarray:
    """Return which hyperparameters the rows can determine."""
    idle = set()
    if len(np.unique(rows.rung)) < 2:
        idle |= {"own", "decay", "interaction_decay", "own_decay", "scale"}
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
    full: float
    """The agreement of a student with itself."""


def _distances(a: Rows, b: Rows, full: float = 1.0) -> _Distances:
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
        full,
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
    exponent = known.full - known.agreement
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
    return dict(zip(_NAMES, np.exp(hyper[: len(_NAMES)]).tolist(), strict=True))


def _weights(hyper: np.ndarray) -> np.ndarray:
    """Return the weights [D] of the dimensions."""
    return np.exp(hyper[len(_NAMES) :])


def _combined(known: _Distances, size: Mapping[str, float], terms: Sequence[_Term]) -> np.ndarray:
    """Return the covariance [N, N'] that `terms` add up to, over the rungs."""
    *broad, interaction = terms
    smooth: np.ndarray = _OFFSET**2 + broad[0].value
    for term in broad[1:]:
        smooth += term.value
    if known.rungs is None:
        return smooth + interaction.value
    factors = _rung_factors(known.rungs, size)
    smooth += interaction.value * factors.fine
    return (smooth * factors.kept + factors.own) * factors.scale + _OFFSET**2 * (known.rungs.steps == 0)


class _RungFactors(NamedTuple):
    """What two rows share across their rungs. Each is [N, N']."""

    kept: np.ndarray
    """What is kept between rungs of all that features explain."""
    fine: np.ndarray
    """How much of that is kept of interactions."""
    own: np.ndarray
    """What a student has of its own."""
    scale: np.ndarray


def _rung_factors(rungs: _RungDistances, size: Mapping[str, float]) -> _RungFactors:
    return _RungFactors(
        np.exp(-size["decay"] * rungs.steps),
        np.exp(-size["interaction_decay"] * rungs.steps),
        size["own"] ** 2 * rungs.same * np.exp(-size["own_decay"] * rungs.steps),
        np.exp(np.log(size["scale"]) * rungs.top),
    )


def _covariance(a: Rows, b: Rows, hyper: np.ndarray) -> np.ndarray:
    weights, size = _weights(hyper), _sizes(hyper)
    known = _distances(a.weighted(weights), b.weighted(weights), float(weights.mean()))
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
    kept, fine, own, scale = _rung_factors(rungs, size)
    within = kernel - _OFFSET**2 * (rungs.steps == 0)
    slopes = {name: slope * kept * scale for name, slope in slopes.items()}
    slopes["interaction"] *= fine
    slopes["interaction_length"] *= fine
    slopes["interaction_decay"] = -0.5 * size["interaction_decay"] * rungs.steps * slopes["interaction"]
    slopes["decay"] = -size["decay"] * rungs.steps * (within - own * scale)
    slopes["own"] = 2 * own * scale
    slopes["own_decay"] = -size["own_decay"] * rungs.steps * own * scale
    slopes["scale"] = rungs.top * within
    return kernel, slopes


def _prior_variance(rows: Rows, hyper: np.ndarray) -> np.ndarray:
    size, rows = _sizes(hyper), rows.weighted(_weights(hyper))
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
