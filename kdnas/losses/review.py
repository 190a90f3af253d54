"""Knowledge review (Chen et al., CVPR 2021).

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import maps, set_norm
from kdnas.nn.matching import channels, match_stages
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_LEVELS = (4, 2, 1)
"""Sizes that maps are compared at in addition to their own."""


@LOSSES.register
class KnowledgeReview(DistillationLoss):
    """Knowledge review (Chen 2021): each stage of the teacher from that stage of the student and all deeper ones.

    From the last stage back, a stage of the student is brought to `width` channels (None: those of its last stage, at
    most 512), fused with what the deeper ones gave by attention, and mapped to the teacher's channels; the loss
    compares at the maps' size and pooled to 4, 2 and 1, weighed 1, 1/2, 1/4, 1/8 over their sum, and is added up over
    the stages. Padding is 0. Usual weight: 1, with task_weight 1 and the authors' warm-up over 20 of 240 epochs; theirs
    goes up to 8.
    """

    needs = frozenset({"stages"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        width: Annotated[int, Field(ge=1, le=4096)] | None = None,
    ):
        super().__init__(student, teacher)
        self.pairs = match_stages(student.stages, teacher.stages)[::-1]
        width = width or min(512, channels(student.stages[self.pairs[0][0]]))
        self.fusions = nn.ModuleList(
            _Fusion(channels(student.stages[s]), width, channels(teacher.stages[t]), fuses=place > 0)
            for place, (s, t) in enumerate(self.pairs)
        )

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the stages."""
        deeper, values = None, []
        for (s, t), fusion in zip(self.pairs, self.fusions, strict=True):
            ours, theirs = maps(student, teacher, s, t)
            reviewed, deeper = fusion(ours, deeper)
            values.append(_at_levels(reviewed, theirs))
        return torch.stack(values).sum()


class _Fusion(nn.Module):
    """A stage with what deeper ones gave, where it `fuses`: as many channels as the teacher's, and for the next one."""

    def __init__(self, before: int, width: int, after: int, *, fuses: bool):
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width))
        self.shares = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuses else None
        self.widen = nn.Sequential(nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))

    def forward(self, features: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the maps that are compared, and those that the stage before is fused with."""
        for part in (self.narrow, self.widen):
            set_norm(part[1], features, training=self.training)
        own = self.narrow(features)
        if self.shares is not None and deeper is not None:
            deeper = F.interpolate(deeper, own.shape[2:], mode="nearest")
            shares = self.shares(torch.cat([own, deeper], dim=1))
            own = own * shares[:, :1] + deeper * shares[:, 1:]
        return self.widen(own), own


def _at_levels(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared error of two maps of one size, at it and at smaller ones."""
    height, width = ours.shape[2:]
    total, weights = F.mse_loss(ours, theirs), 1.0
    weight = 1.0
    for level in _LEVELS:
        if level >= height:
            continue
        weight /= 2
        size = (level, min(level, width))
        error = F.mse_loss(F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size))
        total, weights = total + weight * error, weights + weight
    return total / weights
