"""Several objectives as one: the rotating scalarisation of ParEGO (Knowles, IEEE Transactions on Evolutionary
Computation 2006).

Shapes: N trials, K objectives.
"""

from __future__ import annotations

import itertools

import numpy as np

_AUGMENTATION = 0.05
"""Weight of the sum next to the maximum: keeps points that are only weakly optimal from being best."""
_DIVISIONS = {1: 1, 2: 10, 3: 4}
"""Steps of each weight from 0 to 1, by number of objectives, as in the paper; 3 from four objectives on."""


def rotating_weights(count: int, turn: int) -> np.ndarray:
    """Return the weights [K] of turn `turn` for `count` objectives: at least 0, their sum 1.

    The turns visit every vector of an even lattice on the simplex once, in a shuffled order that is always the same,
    before any is repeated: 11 vectors for two objectives, 15 for three, 20 for four.
    """
    divisions = _DIVISIONS.get(count, 3)
    lattice = [parts for parts in itertools.product(range(divisions + 1), repeat=count) if sum(parts) == divisions]
    order = np.random.default_rng(0).permutation(len(lattice))
    return np.asarray(lattice[order[turn % len(lattice)]], dtype=float) / divisions


def augmented_chebyshev(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return one loss [N] for the minimised `losses` [N, K], each scaled to [0, 1] over the N trials first.

    The largest of the K weighted losses, plus 0.05 times their sum. An objective that is the same everywhere adds 0.
    """
    low = losses.min(axis=0)
    spread = losses.max(axis=0) - low
    weighted = weights * (losses - low) / np.where(spread > 0, spread, 1.0)
    chebyshev: np.ndarray = weighted.max(axis=1) + _AUGMENTATION * weighted.sum(axis=1)
    return chebyshev
