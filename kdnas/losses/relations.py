"""Relations of queries, keys and values: MiniLM v2 (Wang et al., ACL Findings 2021).

Shapes: B batch, N tokens, A relation heads.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import mean_where
from kdnas.nn.attention import AttentionShape, split_heads
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_USUAL_HEADS = 48


@LOSSES.register
class Relations(DistillationLoss):
    """Relations (MiniLM v2, 2021): how alike tokens are by queries, by keys and by values, in one layer of both sides.

    A relation is softmax(A A' / sqrt(d)) of the heads put together and split into `heads` relation heads of width d, so
    that student and teacher need neither equal heads nor equal widths; the loss is the sum over the three of KL(teacher
    || student), mean over relation heads and tokens. The teacher's `layer` counts from 0, or from the last with
    negative numbers (the paper: the last of a base model, an upper middle one of a large); the student's is its last.
    `heads` None is the largest number up to 48, the paper's, that divides all widths. Padding does not count. Usual
    weight: 1, alone.
    """

    needs = frozenset({"attention"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        layer: int = -1,
        heads: Annotated[int, Field(ge=1, le=1024)] | None = None,
    ):
        super().__init__(student, teacher)
        count = len(teacher.attention)
        if not -count <= layer < count:
            raise ConfigError(Problem("layer", f"the teacher has no layer {layer}", f"{-count}..{count - 1}"))
        ours, theirs = student.attention[-1], teacher.attention[layer]
        if ours.tokens != theirs.tokens:
            raise ConfigError(
                Problem("", f"relations of {ours.tokens} and of {theirs.tokens} tokens cannot be compared")
            )
        fitting = [number for number in range(1, _USUAL_HEADS + 1) if _divides(number, ours, theirs)]
        if heads is not None and not _divides(heads, ours, theirs):
            raise ConfigError(Problem("heads", f"{heads} does not divide all widths", ", ".join(map(str, fitting))))
        self.heads, self.layer = heads or fitting[-1], layer

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the three relations."""
        pairs = zip(student.attention[-1].tensors, teacher.attention[self.layer].tensors, strict=True)
        return torch.stack([self._relation(ours, theirs, student.mask) for ours, theirs in pairs]).sum()

    def _relation(self, ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
        ours, theirs = (self._log_shares(tensor, mask) for tensor in (ours, theirs))
        least = torch.finfo(ours.dtype).min
        gaps = F.kl_div(ours.clamp_min(least), theirs.clamp_min(least), reduction="none", log_target=True)
        return mean_where(gaps.sum(-1).mean(1), mask)

    def _log_shares(self, tensor: Tensor, mask: Tensor | None) -> Tensor:
        """Return the logarithm of the relation [B, A, N, N] of queries, keys or values [B, N, C]."""
        split = split_heads(tensor, self.heads)
        alike = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
        if mask is not None:
            alike = alike.masked_fill(mask[:, None, None, :] == 0, -torch.inf)
        return alike.log_softmax(-1)


def _divides(number: int, *layers: AttentionShape) -> bool:
    widths = [width for layer in layers for width in (layer.queries, layer.keys, layer.values)]
    return all(width % number == 0 for width in widths)
