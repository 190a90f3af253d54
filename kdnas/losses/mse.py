"""Squared error of outputs (Ba and Caruana, "Do deep nets really need to be deep?", NIPS 2014)."""

from __future__ import annotations

from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs


@LOSSES.register
class MeanSquaredError(DistillationLoss):
    """Squared error of outputs (Ba and Caruana 2014): of the one number of a regression, or of all logits.

    The mean over the outputs. A study that predicts numbers and states no losses weighs it 0.9 with task_weight 0.1.
    """

    needs = frozenset({"logits"})
    of_values = True

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows, by their weights."""
        return rows.mean(((student.logits - teacher.logits) ** 2).mean(dim=1))
