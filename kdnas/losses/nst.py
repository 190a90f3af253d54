"""Neuron selectivity transfer (Huang and Wang, 2017).

Shapes: B batch, C channels, N positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import maps
from kdnas.nn.directions import directions
from kdnas.nn.matching import match_stages
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class NeuronSelectivity(DistillationLoss):
    """Neuron selectivity (Huang 2017): maximum mean discrepancy of the channels' maps, each of length 1.

    With the kernel (x . y)^2 of two channels' maps the loss is its mean within the student, plus within the teacher,
    less twice that between them, mean over the batch, added up over the matched stages. Numbers of channels may differ:
    no adapter. Padding does not count. Usual weight: 50, with task_weight 1.
    """

    needs = frozenset({"stages"})
    usual_weight = 50.0

    def __init__(self, student: OutputShapes, teacher: OutputShapes):
        super().__init__(student, teacher)
        self.pairs = match_stages(student.stages, teacher.stages)

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the stages."""
        values = []
        for s, t in self.pairs:
            ours, theirs = (directions(each.flatten(2)) for each in maps(student, teacher, s, t))
            values.append(_kernel(ours, ours) + _kernel(theirs, theirs) - 2 * _kernel(ours, theirs))
        return torch.stack(values).sum()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of (x . y)^2 over the rows x of `a` and y of `b` [B, C, N] of each sample."""
    return (a @ b.transpose(1, 2)).square().mean()
