"""Adaptive alpha-divergence of logits (Wang et al., "AlphaNet", ICML 2021).

Shapes: M rows, V outputs.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import softened
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_AT_ONE_END = 1e-3
"""An alpha so near to 0 or 1 is it: the divergence of others has alpha (alpha - 1) in its denominator."""
Alpha = Annotated[float, Field(ge=-4.0, le=4.0)]


@LOSSES.register
class AlphaDivergence(DistillationLoss):
    """Adaptive alpha-divergence (AlphaNet 2021): of each row the larger of two, D(low) and D(high), ratios clipped.

    D(alpha) = E over the student of (w^alpha - 1) / (alpha (alpha - 1)), w = teacher / student: alpha 1 is kd's KL, 0
    reverse_kl. A negative one punishes what the student finds likelier than its teacher, a positive one what it misses,
    so that neither over- nor underestimates go unseen. w^alpha counts as at most `clip`, and gradients flow by the
    student's log probabilities alone. Made for subnets of a supernet; clip_norm is advised. Usual weight: 1.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        low: Alpha = -1.0,
        high: Alpha = 1.0,
        clip: Annotated[float, Field(gt=1.0)] = 5.0,
    ):
        super().__init__(student, teacher)
        if low > high:
            raise ConfigError(Problem("low", f"{low:g} is above high, {high:g}"))
        self.low, self.high, self.clip = low, high, clip

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows."""
        ours, theirs = softened(student, 1.0), softened(teacher, 1.0)
        (low, low_path), (high, high_path) = (self._one(ours, theirs, alpha) for alpha in (self.low, self.high))
        larger = torch.where(low > high, low, high)
        path = torch.where(low > high, low_path, high_path)
        return rows.mean(larger + path - path.detach())

    def _one(self, ours: Tensor, theirs: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Return the divergence [M], a constant, and what has its gradient [M]."""
        fixed = ours.detach()
        q, p, ratio = fixed.exp(), theirs.exp(), theirs - fixed
        if abs(alpha) < _AT_ONE_END:
            clipped = ratio.exp().clamp(torch.finfo(q.dtype).tiny, self.clip).log()
            value, slope = -q * clipped, q * (clipped - 1.0)
        elif abs(alpha - 1.0) < _AT_ONE_END:
            value, slope = p * ratio, p
        else:
            powered, base = (alpha * ratio).exp().clamp(0.0, self.clip), 1.0 / (alpha * (alpha - 1.0))
            value, slope = q * (powered - 1.0) * base, q * (powered / alpha + base)
        return value.sum(dim=1), -(slope * ours).sum(dim=1)
