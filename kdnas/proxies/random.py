"""Samples drawn at random: what every other proxy has to beat."""

from __future__ import annotations

import numpy as np

from kdnas.proxies import PROXIES, Pool


@PROXIES.register
def random(pool: Pool) -> np.ndarray:
    """Samples drawn at random, of every class its part: the choice where a study names none."""
    return pool.drawn()
