"""Pareto dominance over minimised values (N points, M objectives)."""

from __future__ import annotations

import numpy as np


def non_dominated(values: np.ndarray) -> np.ndarray:
    """Return a mask [N] of the rows of `values` [N, M] (minimised) that no other row dominates.

    Equal rows do not dominate each other: the first of them is kept, so that a front never lists a point twice. A row
    with NaN compares with nothing, and is left out.
    """
    values = np.asarray(values, dtype=float)
    mask = np.zeros(len(values), dtype=bool)
    # In this order nothing is dominated by, or a twin of, what stands after it.
    order = np.lexsort(values.T[::-1]) if len(values) else np.empty(0, dtype=int)
    order = order[~np.isnan(values[order]).any(axis=1)] if len(order) else order
    while len(order):
        mask[order[0]] = True
        order = order[np.any(values[order] < values[order[0]], axis=1)]
    return mask


def knee(values: np.ndarray) -> int:
    """Return the row of a front [N, M] (minimised) that gives most for least.

    Each objective is scaled to its range over the front; the knee has the smallest sum. With two objectives that is
    the point farthest below the chord between the extremes (Das, "On characterizing the knee of the Pareto curve",
    Structural Optimization 1999).
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        raise ValueError("an empty front has no knee")
    low, high = values.min(axis=0), values.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return int(np.argmin(((values - low) / span).sum(axis=1)))
