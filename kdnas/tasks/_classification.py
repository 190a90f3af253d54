"""What tasks share that name the one class of a sample.

Shapes: M rows, K classes, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kdnas.core.data import stratified_split
from kdnas.core.scores import scores_of_classes
from kdnas.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from kdnas.nn.rows import Rows


class Classification(Task):
    """One class a sample; the score is the share of samples that are right, or what else is known of classes."""

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
        """Return [3 * K]: of each class: how many samples are right, how often it was predicted, how many it has."""
        return self.tally_of(rows.logits.argmax(dim=1), rows.targets)

    def tally_of(self, predicted: Tensor, true: Tensor) -> Tensor:
        """Return what `tally` does, of the classes `predicted` and `true`, both int64 [M]."""
        import torch

        counts = torch.zeros(3, self.spec.outputs, dtype=torch.float64, device=predicted.device)
        ones = torch.ones(len(predicted), dtype=torch.float64, device=predicted.device)
        counts[0].scatter_add_(0, true, ones * (predicted == true))
        counts[1].scatter_add_(0, predicted, ones)
        counts[2].scatter_add_(0, true, ones)
        return counts.flatten()

    def score(self, tally: Tensor) -> float:
        """Return the one of `scores` that the study scores by."""
        return self.scores(tally)[self.spec.score.name]

    def scores(self, tally: Tensor) -> Mapping[str, float]:
        """Return accuracy, macro F1 and Matthews' correlation."""
        return scores_of_classes(*tally.view(3, self.spec.outputs).numpy())

    def worst(self, targets: np.ndarray) -> float:
        """Return the score of always answering the largest class."""
        true = np.bincount(targets, minlength=self.spec.outputs)
        always = np.arange(len(true)) == true.argmax()
        return scores_of_classes(true * always, len(targets) * always, true)[self.spec.score.name]
