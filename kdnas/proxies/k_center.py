"""Core-set selection by greedy k-centre.

Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach" (ICLR 2018).
"""

from __future__ import annotations

import numpy as np

from kdnas.proxies import PROXIES, Pool


@PROXIES.register
def k_center(pool: Pool) -> np.ndarray:
    """Samples of each class that cover it: each is the farthest from those chosen, in the teacher's features."""
    return pool.chosen(_covering)


def _covering(features: np.ndarray, count: int) -> np.ndarray:
    """Return `count` places of `features` [n, C]: the one nearest to the mean, then always the farthest from all."""
    points = features.astype(np.float64)
    if not count:
        return np.empty(0, dtype=np.int64)
    chosen = [int(np.square(points - points.mean(axis=0)).sum(axis=1).argmin())]
    nearest = np.square(points - points[chosen[0]]).sum(axis=1)
    while len(chosen) < count:
        nearest[chosen] = -1.0  # equal samples are at distance 0 as well
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
    return np.array(chosen, dtype=np.int64)
