"""How good answers are: what is known of classes, of numbers, and of ranks.

The definitions are scikit-learn's and scipy's. What they leave undefined is 0: an answer that never changes goes
together with nothing.

Shapes: K classes, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from kdnas.core.objective import ACCURACY, F1, MATTHEWS, MRR, PEARSON, SPEARMAN


def scores_of_classes(right: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> Mapping[str, float]:
    """Return accuracy, macro F1 and Matthews' correlation of N samples, by name.

    F1 is the mean over the classes that occur, among the samples or the answers. Matthews' correlation is that of
    several classes (Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004).

    Args:
        right: [K], how many samples of each class were predicted rightly.
        predicted: [K], how often each class was predicted.
        true: [K], how many samples each class has. At least one class has some.
    """
    right, predicted, true = (np.asarray(counts, dtype=np.float64) for counts in (right, predicted, true))
    count, hits, occurring = true.sum(), right.sum(), predicted + true > 0
    f1 = 2 * right[occurring] / (predicted + true)[occurring]
    spread = (count**2 - (predicted**2).sum()) * (count**2 - (true**2).sum())
    matthews = (hits * count - (predicted * true).sum()) / math.sqrt(spread) if spread > 0 else 0.0
    return {ACCURACY.name: float(hits / count), F1.name: float(f1.mean()), MATTHEWS.name: float(matthews)}


def scores_of_values(predicted: np.ndarray, true: np.ndarray) -> Mapping[str, float]:
    """Return Spearman's and Pearson's correlation of the numbers `predicted` [N] and `true` [N], by name.

    Both are NaN where one of the predicted numbers is not finite.
    """
    predicted, true = (np.asarray(values, dtype=np.float64) for values in (predicted, true))
    if not np.isfinite(predicted).all():
        return {SPEARMAN.name: math.nan, PEARSON.name: math.nan}
    return {SPEARMAN.name: _correlation(_ranks(predicted), _ranks(true)), PEARSON.name: _correlation(predicted, true)}


def scores_of_ranks(better: np.ndarray, equal: np.ndarray) -> Mapping[str, float]:
    """Return the share of N lists whose right candidate is first, and the mean reciprocal rank, by name.

    Candidates of equal score stand in every order alike often: one score for all is right as often as chance is.

    Args:
        better: [N], how many candidates of each list have a higher score than the right one.
        equal: [N], how many have its score, itself counted. None has where the scores are not numbers: NaN.
    """
    if not (equal > 0).all():
        return {ACCURACY.name: math.nan, MRR.name: math.nan}
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int((better + equal).max()) + 1))])
    reciprocal = (harmonic[better + equal] - harmonic[better]) / equal
    return {ACCURACY.name: float(((better == 0) / equal).mean()), MRR.name: float(reciprocal.mean())}


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if (one == one[0]).all() or (other == other[0]).all():
        return 0.0
    one, other = _direction(one), _direction(other)
    return min(1.0, max(-1.0, float(one @ other)))


def _direction(values: np.ndarray) -> np.ndarray:
    """Return how values lie around their mean, of length 1."""
    around = values - values.mean()
    around /= np.abs(around).max()  # the squares of very small numbers vanish
    unit: np.ndarray = around / np.linalg.norm(around)
    return unit


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[places]
    return ranks
