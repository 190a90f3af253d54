"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import mean_where, token_mask
from kdnas.nn.directions import bounded, directions
from kdnas.nn.matching import match_stages, to_common_size
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class AttentionTransfer(DistillationLoss):
    """Attention transfer (Zagoruyko 2017): squared difference of unit-length spatial attention maps, sum over stages.

    A map is the channel mean of |feature|^power, scaled to length 1; the difference is averaged over the positions,
    as in the authors' code, which adds up the stages. Of two maps the larger is average-pooled first. No adapters.
    Usual weight: 1000, with task_weight 1.
    """

    needs = frozenset({"stages"})
    usual_weight = 1000.0

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        power: Annotated[float, Field(ge=1.0, le=8.0)] = 2.0,
    ):
        super().__init__(student, teacher)
        self.pairs = match_stages(student.stages, teacher.stages)
        self.power = power

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the stages."""
        return torch.stack([self._stage(student, teacher, s, t) for s, t in self.pairs]).sum()

    def _stage(self, student: Outputs, teacher: Outputs, s: int, t: int) -> Tensor:
        mask = token_mask(student, student.stages[s])
        ours, theirs = to_common_size(student.stages[s], teacher.stages[t])
        if mask is None:
            return F.mse_loss(self._attention(ours), self._attention(theirs))
        ours, theirs = (features * mask[:, None, :, None] for features in (ours, theirs))
        return mean_where((self._attention(ours) - self._attention(theirs)).square(), mask)

    def _attention(self, features: Tensor) -> Tensor:
        return directions(bounded(features, dim=(1, 2, 3)).abs().pow(self.power).mean(dim=1).flatten(1))
