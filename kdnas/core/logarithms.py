"""Costs by their logarithms: networks differ by factors, and on a linear axis the expensive ones hide the others.

N students, C costs.
"""

from __future__ import annotations

import numpy as np

_LEAST = 1e-12
"""What a cost that is not above 0 counts as, where those that decided the axis all were."""


def above_zero(costs: np.ndarray) -> np.ndarray:
    """Return of which costs [C] the logarithm is taken: those that are above 0 of all students of `costs` [N, C]."""
    return np.asarray(np.all(costs > 0, axis=0))


def logarithmic(costs: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Return `costs` [N, C] with the logarithm of `columns` [C], unless stated those that are all above 0."""
    columns = above_zero(costs) if columns is None else columns
    return np.where(columns, np.log(np.where(costs > 0, costs, _LEAST)), costs)
