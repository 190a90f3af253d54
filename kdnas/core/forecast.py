"""What a longer training will score, from a shorter one's score and from costs that are known: linear regression.

Bayesian linear regression with normal priors (Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3).
Before anything is seen a student is expected to keep its short score, moved by a constant.

N students, C costs.
"""

from __future__ import annotations

import numpy as np

from kdnas.core.logarithms import logarithmic

_SLOPE_SPREAD = 0.5
"""Standard deviation, before anything is seen, of how the change depends on the own score; of its dependence on a cost
in units of the own scores' spread."""
_LEFT_SHARE = 0.3
"""Of the own scores' spread: what is left unexplained, before anything is seen."""
_LEFT_WEIGHT = 3.0
"""Pairs of scores that this counts as."""


def regressed(short: np.ndarray, full: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return what is expected of `full` [N], NaN where it is not known, given `short` [N] and `costs` [N, C].

    `full` is known of one student or more. The variance that is left is a mean of a prior one and of what was seen.
    """
    both = ~np.isnan(full)
    scale = 1.4826 * float(np.median(np.abs(short - np.median(short)))) or float(short.std()) or 1.0
    centred = short - short[both].mean()
    costs = _standardised(costs)
    design = np.column_stack([np.ones(len(short)), centred, costs])
    prior = np.diag(np.array([10.0 * scale, _SLOPE_SPREAD, *[_SLOPE_SPREAD * scale] * costs.shape[1]]) ** -2.0)
    change, known = (full - short)[both], design[both]
    left = expected = (_LEFT_SHARE * scale) ** 2
    for _ in range(3):
        covariance = np.linalg.inv(prior + known.T @ known / left)
        coefficients = covariance @ (known.T @ change) / left
        seen = float(np.sum((change - known @ coefficients) ** 2))
        fitted = float(np.trace(covariance @ known.T @ known)) / left  # coefficients that the pairs have settled
        left = (_LEFT_WEIGHT * expected + seen) / (_LEFT_WEIGHT + len(change) - fitted)
    return np.asarray(short + design @ coefficients)


def left_out(short: np.ndarray, full: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return what is expected of each of `full` [N] by the regression on all others (leave one out)."""
    expected = np.empty(len(short))
    for index in range(len(short)):
        others = np.where(np.arange(len(short)) == index, np.nan, full)
        expected[index] = regressed(short, others, costs)[index]
    return expected


def _standardised(costs: np.ndarray) -> np.ndarray:
    """Return `costs` [N, C], of positive ones the logarithm, with mean 0 and standard deviation 1."""
    costs = logarithmic(costs)
    spread = costs.std(axis=0)
    return np.asarray((costs - costs.mean(axis=0)) / np.where(spread > 0, spread, 1.0))
