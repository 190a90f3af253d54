"""Cosine of the last hidden states, as in DistilBERT (Sanh et al., NeurIPS workshop 2019).

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import Layers
from kdnas.nn.directions import directions
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class HiddenCosine(DistillationLoss):
    """Tokens of the last layers by direction (DistilBERT 2019): mean of 1 - cosine over all that are no padding.

    Where the widths differ a linear adapter maps the student's tokens to the teacher's width. The pixels of a map are
    its tokens. Usual weight: 1, DistilBERT's, with kd at 5 and the task at 2.
    """

    needs = frozenset({"stages"})

    def __init__(self, student: OutputShapes, teacher: OutputShapes):
        super().__init__(student, teacher)
        self.layers = Layers(student, teacher, "top", slice(-1, None))

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the tokens."""
        (pair,) = self.layers(student, teacher)
        return pair.mean(1 - (directions(pair.ours) * directions(pair.theirs)).sum(-1))
