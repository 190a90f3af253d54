"""Exact hypervolume improvement of many points at once, over a partition of what a front leaves undominated.

N points, M objectives (minimised), K boxes. Source: the sweep over one objective at a time of Yang et al., "Efficient
computation of expected hypervolume improvement using box decomposition algorithms" (Journal of Global Optimization
2019). Over disjoint boxes the improvement is a sum of products, so it stays exact in expectation where the objectives
of a point are independently uncertain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdnas.core.pareto import non_dominated

_CHUNK = 2_000_000
"""Elements of the largest intermediate array."""

Row = tuple[float, ...]
Box = tuple[Row, Row]
Shortfall = Callable[[np.ndarray], np.ndarray]
"""Of one objective y of N points: edges [E] -> the (expected) amounts max(edge - y, 0) [N, E]."""


@dataclass(frozen=True)
class FreeBoxes:
    """Disjoint boxes [K, M] that tile what a front leaves undominated below a reference; lower ends may be -inf."""

    lower: np.ndarray
    upper: np.ndarray


def free_boxes(front: np.ndarray, reference: np.ndarray) -> FreeBoxes:
    """Return the boxes that `front` [N, M] (minimised) leaves undominated below `reference` [M].

    There are at most N + 1 boxes for two objectives and 2 N + 1 for three; four cost some N^2, in time N^3.
    """
    reference = np.asarray(reference, dtype=float)
    front = np.asarray(front, dtype=float).reshape(-1, len(reference))
    front = front[np.all(front < reference, axis=1)]
    front = front[non_dominated(front)]
    rows = [tuple(row) for row in front[np.argsort(front[:, -1], kind="stable")].tolist()]
    bounds = np.asarray(_tile(rows, tuple(reference.tolist())), dtype=float).reshape(-1, 2, len(reference))
    return FreeBoxes(bounds[:, 0], bounds[:, 1])


def improvement(values: np.ndarray, boxes: FreeBoxes) -> np.ndarray:
    """Return, for each row of `values` [N, M], the hypervolume that it alone would add."""
    values = np.asarray(values, dtype=float)
    return expected_improvement([exact_shortfall(column) for column in values.T], len(values), boxes)


def expected_improvement(shortfalls: Sequence[Shortfall], count: int, boxes: FreeBoxes) -> np.ndarray:
    """Return, for each of `count` points, the expected hypervolume that it alone would add.

    `shortfalls` holds the distribution of each objective, in order; they are taken as independent.
    """
    tables = []
    for shortfall, lower, upper in zip(shortfalls, boxes.lower.T, boxes.upper.T, strict=True):
        edges, places = np.unique(np.concatenate([lower, upper]), return_inverse=True)
        table = np.zeros((count, len(edges)))
        table[:, np.isfinite(edges)] = shortfall(edges[np.isfinite(edges)])
        tables.append((table, places[: len(lower)], places[len(lower) :]))
    total = np.empty(count)
    step = max(_CHUNK // max(len(boxes.lower), 1), 1)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        volumes = np.ones((len(total[rows]), len(boxes.lower)))
        for table, lower_places, upper_places in tables:
            volumes *= table[rows][:, upper_places] - table[rows][:, lower_places]
        total[rows] = volumes.sum(axis=1)
    return total


def exact_shortfall(values: np.ndarray) -> Shortfall:
    """Return the shortfall of an objective whose `values` [N] are known."""
    return lambda edges: np.maximum(edges[None, :] - values[:, None], 0.0)


def _tile(front: list[Row], reference: Row) -> list[Box]:
    """Return the free boxes of `front`, which ascends in its last coordinate.

    Between two neighbours of the last coordinate the free region is a cylinder over that of one objective less. A base
    that stays free from one cylinder to the next grows into one box.
    """
    if len(reference) == 1:
        return [((-np.inf,), (min([reference[0], *(row[0] for row in front)]),))]
    ceilings = [*dict.fromkeys(row[-1] for row in front), reference[-1]]
    open_since: dict[Box, float] = {}
    boxes: list[Box] = []
    floor = -np.inf
    for ceiling in ceilings:
        below = sorted({row[:-1] for row in front if row[-1] <= floor}, key=lambda row: row[-1])
        bases = set(_tile(below, reference[:-1]))
        boxes += [_raised(base, open_since.pop(base), floor) for base in [*open_since] if base not in bases]
        for base in bases:
            open_since.setdefault(base, floor)
        floor = ceiling
    return [*boxes, *(_raised(base, start, floor) for base, start in open_since.items())]


def _raised(base: Box, start: float, end: float) -> Box:
    lower, upper = base
    return (*lower, start), (*upper, end)
