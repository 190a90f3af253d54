"""Variational information distillation (Ahn et al., CVPR 2019).

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import tokens
from kdnas.nn.matching import channels, match_stages
from kdnas.nn.precision import in_float32, squared
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_LEAST = 1e-5
"""Of a variance."""


@LOSSES.register
class VariationalInformation(DistillationLoss):
    """Variational information (Ahn 2019): -log of the teacher's stages under a normal whose mean the student gives.

    Of every pixel or token: ((mean - teacher)^2 / variance + log variance) / 2, mean over batch, positions and
    channels, added up over the matched stages. The mean is three linear layers of the student's stage, as wide as the
    teacher's, with ReLUs; each channel of the teacher has a variance that is learnt, `variance` at first. It may go
    below 0. Padding does not count. Usual weight: 1, with task_weight 1.
    """

    needs = frozenset({"stages"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        variance: Annotated[float, Field(gt=0.01, le=100.0)] = 5.0,
    ):
        super().__init__(student, teacher)
        self.pairs = match_stages(student.stages, teacher.stages)
        widths = [(channels(student.stages[s]), channels(teacher.stages[t])) for s, t in self.pairs]
        self.means = nn.ModuleList(
            nn.Sequential(
                nn.Linear(ours, theirs, bias=False),
                nn.ReLU(),
                nn.Linear(theirs, theirs, bias=False),
                nn.ReLU(),
                nn.Linear(theirs, theirs, bias=False),
            )
            for ours, theirs in widths
        )
        raw = torch.tensor(variance - _LEAST).expm1().log()  # softplus makes it the variance again
        self.spreads = nn.ParameterList(nn.Parameter(raw.repeat(theirs)) for _, theirs in widths)

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the stages."""
        values = []
        for (s, t), mean, spread in zip(self.pairs, self.means, self.spreads, strict=True):
            pair = tokens(student, teacher, s, t)
            variance = F.softplus(spread) + _LEAST
            apart = squared(mean(pair.ours) - pair.theirs)
            values.append(pair.mean((0.5 * (apart / variance + variance.log())).mean(-1)))
        return torch.stack(values).sum()
