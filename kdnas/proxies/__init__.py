"""Proxies: which training samples stand for all of them where a short training uses a share. One member a file.

`training: {data_fraction: 0.2, proxy: herding}` trains on a fifth that herding chose. The share of every rung, audit
and retraining is chosen so, from the training split alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdnas.registry import Registry
from kdnas.tasks import Task


@dataclass(frozen=True)
class Pool:
    """The N samples of the training split, of which a share is to be chosen."""

    targets: np.ndarray
    """Class numbers int64 [N], numbers float32 [N], or tokens [N, T]."""
    share: float
    """Of the samples, in (0, 1)."""
    seed: int
    """For what is drawn; one seed of a study has one choice."""
    task: Task
    features: Callable[[], np.ndarray]
    """Computes what the first teacher makes of every sample, float32 [N, C]: its embedding, or its logits where it has
    no linear classifier; the mean over the predictions of a sequence."""

    def drawn(self) -> np.ndarray:
        """Return the places int64 [n] of a random share, as the task draws one: of classes each has its part."""
        return self.task.draw(self.targets, self.share, self.seed)

    def chosen(self, choose: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
        """Return the places int64 [n] that `choose(features [k, C], count)` takes of each class, by their features."""
        features = self.features()
        return np.concatenate([places[choose(features[places], count)] for places, count in self.quotas()])

    def quotas(self) -> list[tuple[np.ndarray, int]]:
        """Return for each class its places, and how many of them a random share has; without classes, for all."""
        drawn = self.drawn()
        if self.targets.ndim > 1 or not np.issubdtype(self.targets.dtype, np.integer):
            return [(np.arange(len(self.targets)), len(drawn))]
        labels, chosen = self.targets, self.targets[drawn]
        return [(np.flatnonzero(labels == label), int((chosen == label).sum())) for label in np.unique(labels)]


PROXIES: Registry[Callable[..., np.ndarray]] = Registry("proxy", __name__, "pool")
"""Members: `function(pool: Pool, *, options) -> places`, which are different, int64 [n], about N * share of them."""
