"""Herding: samples whose mean is that of all (Welling, "Herding dynamical weights to learn", ICML 2009).

On features as Rebuffi et al. choose exemplars, "iCaRL: incremental classifier and representation learning" (CVPR 2017).
"""

from __future__ import annotations

import numpy as np

from kdnas.proxies import PROXIES, Pool


@PROXIES.register
def herding(pool: Pool) -> np.ndarray:
    """Samples of each class whose mean in the teacher's features comes nearest to the class's own, one by one."""
    return pool.chosen(_herded)


def _herded(features: np.ndarray, count: int) -> np.ndarray:
    """Return `count` places of `features` [n, C], each the one that brings the mean so far nearest to that of all."""
    points = features.astype(np.float64)
    squares, mean = np.square(points).sum(axis=1), points.mean(axis=0)
    total, chosen = np.zeros_like(mean), list[int]()
    for size in range(1, count + 1):
        distances = squares - 2 * points @ (size * mean - total)  # squared, but for a constant
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
        total += points[chosen[-1]]
    return np.array(chosen, dtype=np.int64)
