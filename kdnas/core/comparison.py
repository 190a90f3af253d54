"""Whether means of few repeats differ: Welch's t-test, Student's of pairs, Holm's correction where many are tested.

B. L. Welch, "The generalization of Student's problem when several different population variances are involved"
(Biometrika, 1947); S. Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of
Statistics, 1979). The distribution function is the regularised incomplete beta function by its continued fraction
(Press et al., "Numerical Recipes", 6.4).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

_TINY = 1e-300


def welch_p_value(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Welch's t-test of equal means; None where either has fewer than two values."""
    if len(a) < 2 or len(b) < 2:
        return None
    (mean_a, error_a), (mean_b, error_b) = _mean(tuple(a)), _mean(tuple(b))
    difference, error = mean_a - mean_b, error_a + error_b
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    freedom = error**2 / (error_a**2 / (len(a) - 1) + error_b**2 / (len(b) - 1))
    return student_p_value(difference / math.sqrt(error), freedom)


@functools.lru_cache(maxsize=4096)  # each is compared with all others
def _mean(values: tuple[float, ...]) -> tuple[float, float]:
    """Return the mean of at least two values, and the square of its standard error."""
    return statistics.fmean(values), statistics.variance(values) / len(values)


def paired_p_value(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's t-test of no difference between pairs; None below two pairs."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if len(differences) < 2:
        return None
    mean, variance = statistics.fmean(differences), statistics.variance(differences)
    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    return student_p_value(mean / math.sqrt(variance / len(differences)), len(differences) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in their order: at most 5 % of families of them hold a mistake.

    That is where those below 0.05 are taken for differences.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def student_p_value(t: float, freedom: float) -> float:
    """Return the probability that Student's t of `freedom` > 0 degrees is at least as far from 0 as `t`."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b) for x in [0, 1]."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            result *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return result


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
