"""Samples divided among several who do not share them: hospitals, telephones, the teachers of a private vote."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """One of `count` disjoint parts of the training samples, the one of `number` in [0, count)."""

    number: int
    count: int
    skew: float | None = None
    """None: drawn at random. Else each class is dealt out by shares from a Dirichlet distribution of this
    concentration, so that the smaller it is, the more the parts differ (Hsu et al., 2019)."""

    def places(self, targets: np.ndarray, seed: int) -> np.ndarray:
        """Return the sorted places of the part in samples with these `targets` [N], or [N, ...] where none is skewed.

        The parts of one seed are disjoint, and all samples are in them. A skewed one may be empty.
        """
        rng = np.random.default_rng(seed)
        if self.skew is None:
            return np.sort(np.array_split(rng.permutation(len(targets)), self.count)[self.number])
        found = []
        for each in np.unique(targets):
            places = rng.permutation(np.flatnonzero(targets == each))
            shares = rng.dirichlet(np.full(self.count, self.skew))
            ends = np.round(np.cumsum(shares)[:-1] * len(places)).astype(np.int64)
            found.append(np.split(places, ends)[self.number])
        return np.sort(np.concatenate(found))
