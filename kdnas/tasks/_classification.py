"""What tasks share that name the one class of a sample.

Shapes: M rows, K classes, N samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdnas.core.data import stratified_split
from kdnas.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from kdnas.nn.rows import Rows


class Classification(Task):
    """One class a sample; the score is the share of samples that are right."""

    split_in_words = "drawn class by class"

    def split(self, targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted places (kept, carved) of samples with these labels [N], every class shared out alike."""
        return stratified_split(targets, share, seed)

    def draw(self, targets: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Return the sorted places of a `share` in (0, 1] of the samples. Every class has a part in it."""
        left, drawn = self.split(targets, share, seed)
        only = left[~np.isin(targets[left], targets[drawn])]
        return np.union1d(drawn, only)

    def tally(self, rows: Rows) -> Tensor:
        """Return (how many samples are right, how many there are), float64."""
        import torch

        right = (rows.logits.argmax(dim=1) == rows.targets).sum()
        return torch.stack([right, torch.full_like(right, len(rows.targets))]).double()

    def score(self, tally: Tensor) -> float:
        """Return the accuracy, in [0, 1]."""
        return float(tally[0]) / float(tally[1])

    def worst(self, targets: np.ndarray) -> float:
        """Return the accuracy of always answering the largest class."""
        return float(np.bincount(targets).max() / len(targets))
