"""Cross-layer distillation with semantic calibration (Chen et al., AAAI 2021).

Shapes: B batch, S and T stages of student and teacher, A anchors, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import maps
from kdnas.nn.directions import bounded, directions
from kdnas.nn.matching import channels
from kdnas.nn.precision import in_float32, squared
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class SemanticCalibration(DistillationLoss):
    """Semantic calibration (Chen 2021): every stage of the student learns all of the teacher's, by learnt attention.

    A sample's share of a pair of stages is the softmax over the teacher's of query . key: what two small networks make
    of the sample's similarity, in that stage, to the first `anchors` of the batch. Each pair has a linear adapter; the
    loss is the mean over samples and student's stages of the shared mean squared errors. Padding is 0. Usual weight:
    400, with task_weight 1.
    """

    needs = frozenset({"stages"})
    usual_weight = 400.0

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        anchors: Annotated[int, Field(ge=2, le=4096)] = 64,
        width: Annotated[int, Field(ge=1, le=4096)] = 32,
    ):
        super().__init__(student, teacher)
        self.anchors = anchors
        self.queries = nn.ModuleList(_embedding(anchors, width) for _ in student.stages)
        self.keys = nn.ModuleList(_embedding(anchors, width) for _ in teacher.stages)
        self.adapters = nn.ModuleList(
            nn.Conv2d(channels(ours), channels(theirs), 1) for ours in student.stages for theirs in teacher.stages
        )

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over samples and the student's stages."""
        queries, keys = (
            torch.stack(
                [F.normalize(net(self._alike(stage)), dim=1) for net, stage in zip(nets, side.stages, strict=True)], 1
            )
            for nets, side in ((self.queries, student), (self.keys, teacher))
        )
        shares = (queries @ keys.transpose(1, 2)).softmax(dim=2)
        apart = [[self._apart(student, teacher, s, t) for t in range(len(self.keys))] for s in range(len(self.queries))]
        gaps = torch.stack([torch.stack(row, dim=1) for row in apart], dim=1)
        return (shares * gaps).sum(dim=2).mean()

    def _alike(self, stage: Tensor) -> Tensor:
        """Return how alike samples are to the anchors in a stage [B, ...]: [B, A], 0 where the batch has no more."""
        flat = bounded(stage.flatten(1), dim=(0, 1))
        alike = directions(flat @ flat[: self.anchors].T)
        return F.pad(alike, (0, self.anchors - alike.shape[1]))

    def _apart(self, student: Outputs, teacher: Outputs, s: int, t: int) -> Tensor:
        """Return the mean squared error [B] of a pair of stages."""
        ours, theirs = maps(student, teacher, s, t)
        return squared(self.adapters[s * len(self.keys) + t](ours) - theirs).flatten(1).mean(dim=1)


def _embedding(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, width), nn.ReLU(), nn.Linear(width, width))
