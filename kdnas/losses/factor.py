"""Factor transfer (Kim, Park and Kwak, NeurIPS 2018).

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import maps
from kdnas.nn.directions import bounded, directions
from kdnas.nn.matching import channels, match_stages
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_SLOPE = 0.1
"""Of the leaky ReLUs."""


@LOSSES.register
class FactorTransfer(DistillationLoss):
    """Factor transfer (Kim 2018): factors of the last stage, by a paraphraser of the teacher's and a translator.

    A factor's position is its mean squared channel, all of them of length 1; the loss is the mean absolute difference
    of the two. The paraphraser, an autoencoder with `rate` x the teacher's channels, learns at the same time by its
    mean squared error, which is added at `reconstruction` (the authors train it before, for 30 epochs). Padding does
    not count. Usual weight: 200, with task_weight 1.
    """

    needs = frozenset({"stages"})
    usual_weight = 200.0

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        rate: Annotated[float, Field(gt=0.0, le=4.0)] = 0.5,
        reconstruction: Annotated[float, Field(ge=0.0)] = 0.005,
    ):
        super().__init__(student, teacher)
        self.student_stage, self.teacher_stage = match_stages(student.stages, teacher.stages)[-1]
        ours, theirs = channels(student.stages[self.student_stage]), channels(teacher.stages[self.teacher_stage])
        factors = max(1, round(rate * theirs))
        self.paraphraser = _convolutions(theirs, theirs, factors, factors)
        self.decoder = _convolutions(factors, factors, theirs, theirs)
        self.translator = _convolutions(ours, ours, factors, factors)
        self.reconstruction = reconstruction

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the difference of the factors, and the paraphraser's error."""
        ours, theirs = maps(student, teacher, self.student_stage, self.teacher_stage)
        paraphrased = self.paraphraser(theirs)
        apart = (_factor(self.translator(ours)) - _factor(paraphrased.detach())).abs().mean()
        return apart + self.reconstruction * F.mse_loss(self.decoder(paraphrased), theirs)


def _convolutions(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


def _factor(features: Tensor) -> Tensor:
    """Return the mean squared channel [B, H * W], of length 1."""
    return directions(bounded(features, dim=(1, 2, 3)).square().mean(dim=1).flatten(1))
