"""Exact hypervolume of a set of minimised points.

Source: the slicing scheme of While et al., "A faster algorithm for calculating hypervolume" (IEEE TEC 2006), enough
for fronts of a few hundred points in two to four objectives.
"""

from __future__ import annotations

import numpy as np

from kdnas.core.pareto import non_dominated


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume that `values` [N, M] (minimised) dominates below `reference` [M].

    Points that do not beat the reference in every objective add nothing.
    """
    values, reference = np.asarray(values, dtype=float), np.asarray(reference, dtype=float)
    values = values.reshape(-1, len(reference))
    values = values[np.all(values < reference, axis=1)]
    return _slices(values, reference) if len(values) else 0.0


def _slices(values: np.ndarray, reference: np.ndarray) -> float:
    if values.shape[1] == 1:
        return float(reference[0] - values.min())
    values = values[non_dominated(values)]
    values = values[np.argsort(values[:, -1], kind="stable")]
    if values.shape[1] == 2:
        ceilings = np.concatenate([[reference[0]], np.minimum.accumulate(values[:, 0])[:-1]])
        return float(np.sum(np.maximum(ceilings - values[:, 0], 0.0) * (reference[1] - values[:, 1])))
    tops = np.append(values[1:, -1], reference[-1])
    return float(
        sum(
            (top - row[-1]) * _slices(values[: i + 1, :-1], reference[:-1])
            for i, (row, top) in enumerate(zip(values, tops, strict=True))
            if top > row[-1]
        )
    )
