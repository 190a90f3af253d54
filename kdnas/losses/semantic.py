"""A penalty on what rules forbid (Xu et al., "A semantic loss function for deep learning", ICML 2018).

Shapes: M rows, K classes.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class Semantic(DistillationLoss):
    """Semantic loss (ICML 2018): minus the logarithm of the probability that the student gives to what is allowed.

    Of a teacher `label_rules` that is what its rules allow, and 0 of a text that none is about: beside it stand the
    labels, or a loss of another teacher. Of a teacher that knows probabilities a class is allowed which is at least
    `least` times as likely as the likeliest. Usual weight: 1.
    """

    needs = frozenset({"logits"})

    def __init__(
        self, student: OutputShapes, teacher: OutputShapes, *, least: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    ):
        super().__init__(student, teacher)
        self.least = least

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows."""
        logits = student.logits
        allowed = teacher.logits >= teacher.logits.amax(dim=1, keepdim=True) + math.log(self.least)
        kept = logits.masked_fill(~allowed, -math.inf).logsumexp(dim=1)  # the likeliest is always allowed
        return rows.mean(logits.logsumexp(dim=1) - kept)
