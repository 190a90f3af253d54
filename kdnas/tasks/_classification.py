"""What tasks share that name the one class of a sample.

Shapes: M rows, K classes, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kdnas.core.data import stratified_split
from kdnas.core.scores import scores_of_classes
from kdnas.core.task import UNLABELLED
from kdnas.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from kdnas.nn.rows import Rows


class Classification(Task):
    """One class a sample; the score is the share of samples that are right, or what else is known of classes."""

    split_in_words = "drawn class by class"

    def split(self, targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted places (kept, carved) of samples with these labels [N], every class shared out alike.

        Samples without a label are kept: nothing can be scored on them.
        """
        if not self.spec.partly:
            return stratified_split(targets, share, seed)
        labelled = np.flatnonzero(targets != UNLABELLED)
        carved = labelled[stratified_split(targets[labelled], share, seed)[1]]
        return np.setdiff1d(np.arange(len(targets)), carved), carved

    def draw(self, targets: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Return the sorted places of a `share` in (0, 1] of the samples. Every class has a part in it."""
        left, drawn = stratified_split(targets, share, seed)
        only = left[~np.isin(targets[left], targets[drawn])]
        return np.union1d(drawn, only)

    def tally(self, rows: Rows) -> Tensor:
        """Return [3 * K]: of each class: how many samples are right, how often it was predicted, how many it has."""
        known = rows.known
        return counts_of_classes(known.logits.argmax(dim=1), known.targets, self.spec.outputs, known.weights)

    def tally_of(self, predicted: Tensor, true: Tensor) -> Tensor:
        """Return what `tally` does, of the classes `predicted` and `true`, both int64 [M]."""
        return counts_of_classes(predicted, true, self.spec.outputs)

    def score(self, tally: Tensor) -> float:
        """Return the one of `scores` that the study scores by."""
        return self.scores(tally)[self.spec.score.name]

    def scores(self, tally: Tensor) -> Mapping[str, float]:
        """Return accuracy, macro F1 and Matthews' correlation."""
        return scores_of_classes(*tally.view(3, self.spec.outputs).numpy())

    def worst(self, targets: np.ndarray) -> float:
        """Return the score of always answering the largest class."""
        return scores_of_the_largest(targets, self.spec.outputs)[self.spec.score.name]

    def rows(self, logits: Tensor, inputs: tuple[Tensor, ...], targets: Tensor) -> Rows:
        """Return the predictions `logits` [B, K] of a batch as rows, and which of them have a label."""
        rows = super().rows(logits, inputs, targets)
        return replace(rows, labelled=targets != UNLABELLED) if self.spec.partly else rows


def counts_of_classes(predicted: Tensor, true: Tensor, classes: int, weights: Tensor | None = None) -> Tensor:
    """Return float64 [3 * classes]: how many are right of each class, how often each was told, how many each has.

    `predicted` and `true` are int64 [M]; `weights` [M] say how much each counts, None: all the same.
    """
    import torch

    counts = torch.zeros(3, classes, dtype=torch.float64, device=predicted.device)
    each = torch.ones(len(predicted), dtype=torch.float64, device=predicted.device)
    each = each if weights is None else each * weights
    counts[0].scatter_add_(0, true, each * (predicted == true))
    counts[1].scatter_add_(0, predicted, each)
    counts[2].scatter_add_(0, true, each)
    return counts.flatten()


def scores_of_the_largest(targets: np.ndarray, classes: int) -> Mapping[str, float]:
    """Return the scores of always answering the largest class of `targets` [N]; those without a label do not count."""
    known = targets[targets != UNLABELLED]
    true = np.bincount(known, minlength=classes)
    always = np.arange(len(true)) == true.argmax()
    return scores_of_classes(true * always, len(known) * always, true)
