"""Contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020).

Shapes: n rows of a batch, K of the memory, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._embeddings import embeddings
from kdnas.nn.directions import directions
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_UNKNOWN = -1.0
"""A mean that no batch has been seen for."""


@LOSSES.register
class ContrastiveRepresentation(DistillationLoss):
    """Contrastive representation (Tian 2020): match the other network's embedding of a sample against those of others.

    Linear heads map both embeddings to `width` numbers of length 1; e = exp(cosine / temperature), over its mean in the
    first batch, is distinguished from `memory` embeddings of earlier samples by noise-contrastive estimation: -log e /
    (e + K) - sum log K / (e_k + K), in both directions. The memory is a queue of the batches before, where the authors
    keep one place a training sample. Usual weight: 0.8, with kd at 1 or alone, with task_weight 1.
    """

    needs = frozenset({"embedding"})
    usual_weight = 0.8
    memory: Tensor
    means: Tensor

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        width: Annotated[int, Field(ge=1, le=4096)] = 128,
        memory: Annotated[int, Field(ge=1, le=1 << 20)] = 4096,
        temperature: Annotated[float, Field(gt=0.0, le=10.0)] = 0.07,
    ):
        super().__init__(student, teacher)
        self.temperature = temperature
        self.heads = nn.ModuleList(nn.Linear(side.embedding, width) for side in (student, teacher))
        self.register_buffer("memory", directions(torch.randn(2, memory, width)))
        self.register_buffer("means", torch.full((2,), _UNKNOWN))

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the samples, both directions added up; in training they go into the memory."""
        pair = embeddings(student, teacher, rows)
        ours, theirs = (directions(head(each)) for head, each in zip(self.heads, pair, strict=True))
        memory = self.memory.clone()  # what gradients are computed from must stay as it is
        losses = [
            self._contrast(ours, theirs.detach(), memory[1], 0),
            self._contrast(theirs, ours.detach(), memory[0], 1),
        ]
        if self.training:
            for side, new in enumerate((ours, theirs)):
                queue = torch.cat([memory[side], new.detach()])
                self.memory[side].copy_(queue[len(new) :])
        return torch.stack(losses).sum()

    def _contrast(self, anchors: Tensor, same: Tensor, others: Tensor, side: int) -> Tensor:
        """Return the loss of `anchors` [n, D], of which `same` are the other network's, `others` [K, D] the memory."""
        known = (anchors * same).sum(dim=1, keepdim=True)
        scores = (torch.cat([known, anchors @ others.T], dim=1) / self.temperature).exp()
        mean = torch.where(self.means[side] < 0, scores.detach().mean(), self.means[side])
        if self.training:
            self.means[side].copy_(mean)
        scores, count = scores / mean, float(len(others))
        right = (scores[:, 0] / (scores[:, 0] + count)).log()
        wrong = (count / (scores[:, 1:] + count)).log().sum(dim=1)
        return -(right + wrong).mean()
