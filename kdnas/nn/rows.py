"""What every task is trained and scored on: batches of samples, and predictions as rows.

A row is one prediction: one a sample of a classification, one a position of a sequence. Losses on logits, their cache
and the evaluation work on rows alone, hence serve every task.

Shapes: B batch, M rows, V outputs (classes or tokens).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdnas.core.task import Head

_LEAST_WEIGHT = 1e-12
"""Of a batch in which nothing counts: its mean is 0."""


@dataclass(frozen=True)
class Batch:
    """Samples on a device.

    `inputs` [B, ...] stand in the order of the task's inputs, and a network is called with them; `targets` is int64 [B]
    or [B, T], [B, P] of P tasks, probabilities [B, K] where samples are mixed, or the numbers float32 [B] of a
    regression; `samples` int64 [B] are places in the data's arrays.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    samples: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: slice | Tensor) -> Batch:
        """Return a stretch of the samples, or those at places int64 [n] of the batch in that order."""
        return Batch(tuple(taken[part] for taken in self.inputs), self.targets[part], self.samples[part])

    @property
    def laid_out(self) -> tuple[Tensor, ...]:
        """The inputs with pixels in the channels-last format."""
        return laid_out(self.inputs)


def laid_out(inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return `inputs` with pixels in the channels-last format, in which convolutions are quickest."""
    return tuple(taken.contiguous(memory_format=torch.channels_last) if taken.ndim == 4 else taken for taken in inputs)


@dataclass(frozen=True)
class Rows:
    """`logits` [M, V]; `targets` int64 [M] or probabilities [M, V]; `weights` float [M] >= 0, None where all count.

    Of a regression `logits` [M, 1] are the numbers predicted, and `targets` float [M] the true ones. A row of weight 0,
    such as padding, still has finite logits and a valid target.

    `labelled` bool [M] marks the rows that have a label; None: all have. The others' target is -1, which is no class.
    With `heads` of several tasks, `logits` [M, V] are those of all, `targets` and `labelled` [M, P].
    """

    logits: Tensor
    targets: Tensor
    weights: Tensor | None = None
    labelled: Tensor | None = None
    heads: tuple[Head, ...] = ()

    @property
    def known(self) -> Rows:
        """The rows for who reads labels: those without one weigh nothing, and their target is a class."""
        if self.labelled is None:
            return self
        there = self.labelled.float()
        weights = there if self.weights is None else self.weights * there
        return replace(self, targets=self.targets.clamp_min(0), weights=weights, labelled=None)

    def of(self, head: Head) -> Rows:
        """Return the rows of one of several tasks."""
        place = self.heads.index(head)
        labelled = None if self.labelled is None else self.labelled[:, place]
        return Rows(self.logits[:, head.places], self.targets[:, place], self.weights, labelled)

    @property
    def are_values(self) -> bool:
        """Whether the targets are numbers, no classes."""
        return self.targets.ndim == 1 and self.targets.is_floating_point()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` [M] over the rows, by their weights."""
        if self.weights is None:
            return values.mean()
        weights = self.weights.to(values.dtype)
        return (values * weights).sum() / weights.sum().clamp_min(_LEAST_WEIGHT)

    def float(self) -> Rows:
        """Return the same rows with logits in float32."""
        return replace(self, logits=self.logits.float())
