"""How well one ranking agrees with another: Kendall's tau-b, its bootstrap interval, and tau inside bands.

M. G. Kendall, "The treatment of ties in ranking problems" (Biometrika, 1945); partial tau: "Partial rank correlation"
(Biometrika, 1942). Intervals are percentiles of a bootstrap over the items (Efron and Tibshirani, 1993), seeded, so
that the same numbers always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
_SEED = 20450101


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval, made of `items` of which `pairs` were compared."""

    value: float
    low: float
    high: float
    items: int
    pairs: int


def kendall_tau(x: ArrayLike, y: ArrayLike, *, within: ArrayLike | None = None) -> float:
    """Return Kendall's tau-b of `x` and `y`, in [-1, 1]; with `within`, of the pairs that share its label alone.

    NaN where no pair differs in both. Raises ValueError where the lengths differ.
    """
    return _Pairs.of(x, y, within).tau


def agreement(x: ArrayLike, y: ArrayLike, *, within: ArrayLike | None = None) -> Estimate | None:
    """Return `kendall_tau` with its interval; None where fewer than three items or no pairs can be compared."""
    return mean_agreement([(x, y)], within=within)


def mean_agreement(
    rankings: Sequence[tuple[ArrayLike, ArrayLike]], *, within: ArrayLike | None = None
) -> Estimate | None:
    """Return the mean tau of several (x, y) of the same items, such as trainings of several seeds, as `agreement`."""
    tables = [_Pairs.of(x, y, within) for x, y in rankings]
    if not tables or any(table.items < 3 or math.isnan(table.tau) for table in tables):
        return None
    draws = np.mean([table.resampled() for table in tables], axis=0)
    return _estimate(float(np.mean([table.tau for table in tables])), draws, tables[0])


def agreement_gain(x: ArrayLike, other: ArrayLike, y: ArrayLike, *, within: ArrayLike | None = None) -> Estimate | None:
    """Return tau(x, y) - tau(other, y), both of the same resamples; None as `agreement`."""
    ours, theirs = _Pairs.of(x, y, within), _Pairs.of(other, y, within)
    if ours.items < 3 or math.isnan(ours.tau) or math.isnan(theirs.tau):
        return None
    return _estimate(ours.tau - theirs.tau, ours.resampled() - theirs.resampled(), ours)


def partial_agreement(x: ArrayLike, y: ArrayLike, *, given: ArrayLike) -> Estimate | None:
    """Return Kendall's partial tau of `x` and `y` with `given` held fixed; None as `agreement`, or where undefined."""
    tables = [_Pairs.of(a, b, None) for a, b in ((x, y), (x, given), (y, given))]
    value = float(_partial(*(np.array([table.tau]) for table in tables))[0])
    if tables[0].items < 3 or math.isnan(value):
        return None
    return _estimate(value, _partial(*(table.resampled() for table in tables)), tables[0])


def resampled_taus(x: ArrayLike, y: ArrayLike) -> Floats:
    """Return the tau of each bootstrap resample [RESAMPLES]; the same items are drawn for every ranking of a length."""
    return _Pairs.of(x, y, None).resampled()


def equal_bands(values: ArrayLike, tolerance: float) -> NDArray[np.int64]:
    """Return the band of each positive value: cut from the smallest up, the largest of a band at most 1 + `tolerance`
    times its smallest. Numbered from 0, by value.
    """
    array = np.asarray(values, dtype=float)
    bands = np.zeros(len(array), dtype=np.int64)
    band, floor = -1, -math.inf
    for index in np.argsort(array, kind="stable"):
        if band < 0 or array[index] > floor * (1 + tolerance) * (1 + 1e-12):
            band, floor = band + 1, array[index]
        bands[index] = band
    return bands


def percentile_interval(draws: ArrayLike) -> tuple[float, float]:
    """Return the middle 95 % of `draws`, those that are not defined left out; (NaN, NaN) where none is."""
    array = np.asarray(draws, dtype=float)
    kept = array[~np.isnan(array)]
    if len(kept) == 0:
        return math.nan, math.nan
    low, high = np.quantile(kept, [0.025, 0.975], method="nearest")  # infinite draws are not averaged
    return float(low), float(high)


@dataclass(frozen=True)
class _Pairs:
    """Every pair of N items, as matrices [N, N]: concordant (+1), discordant (-1); differing in x; differing in y."""

    concordance: Floats
    differs_x: Floats
    differs_y: Floats
    compared: Floats

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike, within: ArrayLike | None) -> _Pairs:
        first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if first.ndim != 1 or first.shape != second.shape:
            raise ValueError(f"rankings of {first.shape} and {second.shape} cannot be compared")
        compared = 1.0 - np.eye(len(first))
        if within is not None:
            labels = np.asarray(within)
            compared *= labels[:, None] == labels
        signs_x = np.sign(first[:, None] - first) * compared
        signs_y = np.sign(second[:, None] - second) * compared
        return cls(signs_x * signs_y, np.abs(signs_x), np.abs(signs_y), compared)

    @property
    def items(self) -> int:
        """The items that have another to be compared with."""
        return int((self.compared.sum(axis=1) > 0).sum())

    @property
    def pairs(self) -> int:
        """The pairs that are compared, ties counted."""
        return int(self.compared.sum()) // 2

    @property
    def tau(self) -> float:
        scale = math.sqrt(self.differs_x.sum() * self.differs_y.sum())
        return float(self.concordance.sum() / scale) if scale > 0 else math.nan

    def resampled(self) -> Floats:
        """Return tau of each resample. Copies of one item are no pair: they tie in both rankings.

        Where every pair agrees, resamples could not disagree either, whatever the number of items; one pair is
        therefore counted as an exception, so that an interval of few items does not shrink to a point.
        """
        n = len(self.concordance)
        draws = np.random.default_rng(_SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
        concordance = self.concordance
        if abs(self.tau) == 1.0:
            i, j = np.argwhere(concordance != 0)[0]
            concordance = concordance.copy()
            concordance[i, j] = concordance[j, i] = -concordance[i, j]
        total, scale_x, scale_y = (
            ((draws @ matrix) * draws).sum(axis=1) for matrix in (concordance, self.differs_x, self.differs_y)
        )
        scale = np.sqrt(scale_x * scale_y)
        return np.divide(total, scale, out=np.full(RESAMPLES, math.nan), where=scale > 0)


def _partial(tau_xy: Floats, tau_xz: Floats, tau_yz: Floats) -> Floats:
    scale = np.sqrt((1 - tau_xz**2) * (1 - tau_yz**2))
    return np.divide(tau_xy - tau_xz * tau_yz, scale, out=np.full(len(scale), math.nan), where=scale > 1e-9)


def _estimate(value: float, draws: Floats, table: _Pairs) -> Estimate:
    low, high = percentile_interval(draws)
    return Estimate(value, low, high, table.items, table.pairs)
