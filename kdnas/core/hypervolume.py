"""Exact hypervolume of a set of minimised points.

Sources: in three objectives the sweep of Beume et al., "On the complexity of computing the hypervolume indicator" (IEEE
TEC 2009), of four slices that are swept each: While et al., "A faster algorithm for calculating hypervolume" (IEEE TEC
2006), and for what one point adds While, Bradstreet and Barone, "A fast way of calculating exact hypervolumes" (IEEE
TEC 2012).
"""

from __future__ import annotations

from bisect import bisect_right

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


def gain(values: np.ndarray, point: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume below `reference` [M] that `point` [M] adds to what `values` [N, M] (minimised) dominate."""
    if not (point < reference).all():
        return 0.0
    whole = float(np.prod(reference - point))
    return max(whole - hypervolume(np.maximum(values, point), reference), 0.0)


def _slices(values: np.ndarray, reference: np.ndarray) -> float:
    if values.shape[1] == 1:
        return float(reference[0] - values.min())
    values = values[non_dominated(values)]
    values = values[np.argsort(values[:, -1], kind="stable")]
    if values.shape[1] == 2:
        ceilings = np.concatenate([[reference[0]], np.minimum.accumulate(values[:, 0])[:-1]])
        return float(np.sum(np.maximum(ceilings - values[:, 0], 0.0) * (reference[1] - values[:, 1])))
    if values.shape[1] == 3:
        return _swept(values.tolist(), *reference.tolist())
    tops = np.append(values[1:, -1], reference[-1])
    return float(
        sum(
            (top - row[-1]) * _slices(values[: i + 1, :-1], reference[:-1])
            for i, (row, top) in enumerate(zip(values, tops, strict=True))
            if top > row[-1]
        )
    )


def _swept(rows: list[list[float]], right: float, top: float, end: float) -> float:
    """Return the volume below (right, top, end) of `rows` (x, y, z), which ascend in z."""
    xs: list[float] = []
    ys: list[float] = []  # of a staircase: the higher x the lower y
    volume, area, reached = 0.0, 0.0, 0.0
    for x, y, z in rows:
        volume, reached = volume + area * (z - reached), z
        place = bisect_right(xs, x)
        ceiling = ys[place - 1] if place else top
        if ceiling <= y:
            continue
        after, left = place, x
        while after < len(ys) and ys[after] >= y:
            area += (xs[after] - left) * (ceiling - y)
            left, ceiling, after = xs[after], ys[after], after + 1
        area += ((xs[after] if after < len(xs) else right) - left) * (ceiling - y)
        xs[place:after], ys[place:after] = [x], [y]
    return volume + area * (end - reached)
