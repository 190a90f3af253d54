"""Images, and for each of several tasks the one class that an image is of: who speaks, and what is said.

One network answers all tasks: its logits [B, V] are theirs, one after the other, which is one linear classifier a task
on the embedding that they share (Caruana, "Multitask learning", Machine Learning 1997). A label may be missing of some
tasks, or of all: the target is then -1. Images are not mixed.

Shapes: B batch, N samples, P tasks, K classes of a task, V classes of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kdnas.core.data import stratified_split
from kdnas.core.scores import scores_of_classes
from kdnas.core.task import UNLABELLED, score_of
from kdnas.tasks import TASKS
from kdnas.tasks._classification import counts_of_classes, scores_of_the_largest
from kdnas.tasks._image_settings import Augmentation
from kdnas.tasks._images import Images

if TYPE_CHECKING:
    from torch import Tensor

    from kdnas.nn.rows import Rows


@TASKS.register
class MultitaskImageClassification(Images):
    """Images [B, C, H, W] with a class for each of several tasks; the score is the mean over the tasks."""

    Views = Augmentation
    split_in_words = "drawn combination by combination of their classes"

    def split(self, targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted places (kept, carved) of samples with these labels [N, P].

        Every combination of classes is shared out alike; those too rare for it are one. Samples without any label are
        kept.
        """
        there = np.flatnonzero((targets != UNLABELLED).any(axis=1))
        carved = there[stratified_split(_combinations(targets[there], share), share, seed)[1]]
        return np.setdiff1d(np.arange(len(targets)), carved), carved

    def draw(self, targets: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Return the sorted places of a `share` in (0, 1] of the samples, of every combination of classes its part."""
        return stratified_split(_combinations(targets, share), share, seed)[1]

    def rows(self, logits: Tensor, inputs: tuple[Tensor, ...], targets: Tensor) -> Rows:
        """Return the predictions `logits` [B, V] of a batch as rows of all tasks."""
        from kdnas.nn.rows import Rows

        labelled = targets != UNLABELLED if self.spec.partly else None
        return Rows(logits, targets, self.weights(inputs, targets), labelled, self.spec.heads)

    def tally(self, rows: Rows) -> Tensor:
        """Return [3 * V]: of each task how many samples of each class are right, were told, and are there."""
        import torch

        tasks = [rows.of(head).known for head in self.spec.heads]
        return torch.cat(
            [counts_of_classes(t.logits.argmax(1), t.targets, t.logits.shape[1], t.weights) for t in tasks]
        )

    def scores(self, tally: Tensor) -> Mapping[str, float]:
        """Return the means over the tasks of accuracy, macro F1 and Matthews' correlation, and those of each task."""
        parts = tally.split([3 * head.outputs for head in self.spec.heads])
        by_task = {
            head.name: scores_of_classes(*part.view(3, head.outputs).numpy())
            for head, part in zip(self.spec.heads, parts, strict=True)
        }
        return _with_means(by_task)

    def worst(self, targets: np.ndarray) -> float:
        """Return the score of always answering each task's largest class."""
        return self.worsts(targets)[self.spec.score.name]

    def worsts(self, targets: np.ndarray) -> Mapping[str, float]:
        """Return what `worst` does of all `scores`."""
        heads = enumerate(self.spec.heads)
        return _with_means({h.name: scores_of_the_largest(targets[:, place], h.outputs) for place, h in heads})


def _with_means(by_task: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """Return the scores of each task by `TASK.SCORE`, and by their own names the means over the tasks."""
    names = next(iter(by_task.values()))
    means = {name: sum(scores[name] for scores in by_task.values()) / len(by_task) for name in names}
    return means | {score_of(task, name): value for task, own in by_task.items() for name, value in own.items()}


def _combinations(targets: np.ndarray, share: float) -> np.ndarray:
    """Return int64 [N]: which combination of classes each sample is of, those too few to give a part being one."""
    _, which, counts = np.unique(targets, axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    rare = counts * min(share, 1 - share) < 1 if share < 1 else np.zeros(len(counts), dtype=bool)
    return np.where(rare[which], len(counts), which)
