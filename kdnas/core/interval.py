"""Student's t interval for a mean of few repeats, alone or with the spread pooled over many."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Two-sided 95 % quantiles of Student's t for 1..30 degrees of freedom.
_T95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


def mean_ci95(values: Sequence[float]) -> tuple[float, float | None]:
    """Return (mean, half width of its 95 % interval); the half width is None below two values."""
    n = len(values)
    if n == 0:
        raise ValueError("no values")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, _quantile(n - 1) * math.sqrt(variance / n)


def holds_next(values: Sequence[float], further: float) -> bool | None:
    """Return whether `further` lies where 95 of 100 values more of what gave `values` would; None below two of them."""
    mean, half_width = mean_ci95(values)
    return None if half_width is None else abs(mean - further) <= half_width * math.sqrt(len(values) + 1)


def share_interval(mean: float, half_width: float | None) -> tuple[float, float]:
    """Return the ends of the interval of a share, which leaves [0, 1] at neither end."""
    half = half_width or 0.0
    return max(mean - half, 0.0), min(mean + half, 1.0)


def pooled_ci95(groups: Sequence[Sequence[float]]) -> list[float | None]:
    """Return the half width of the 95 % interval of each group's mean, the spread within groups pooled over all.

    None everywhere where no group has two values. Assumes that the groups spread alike, which lets groups of two or
    three values have intervals of a useful width.
    """
    freedom = sum(len(values) - 1 for values in groups)
    if freedom == 0:
        return [None] * len(groups)
    squares = math.fsum((value - math.fsum(values) / len(values)) ** 2 for values in groups for value in values)
    spread = math.sqrt(squares / freedom)
    return [_quantile(freedom) * spread / math.sqrt(len(values)) for values in groups]


def _quantile(freedom: int) -> float:
    """Return the quantile for `freedom` degrees: of the table, else by its series (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
