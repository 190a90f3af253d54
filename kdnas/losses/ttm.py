"""Transformed teacher matching: a temperature for the teacher alone (Zheng and Yang, ICLR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, kl, softened
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class TransformedTeacherMatching(DistillationLoss):
    """Transformed teacher matching (Zheng 2024): KL(teacher at temperature T || student at 1), rows weighed.

    `weighted` counts a row by the sum of its teacher's probabilities to the power 1 / T: more where the teacher is
    unsure (the authors' WTTM, their better one). Usual weight: 1; the authors search it between 1 and 100 for each
    pair, at temperatures of 2 to 10, with task_weight 1.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        temperature: Temperature = 4.0,
        weighted: bool = True,
    ):
        super().__init__(student, teacher)
        self.temperature = temperature
        self.weighted = weighted

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows."""
        gaps = kl(softened(teacher, self.temperature), softened(student, 1.0))
        if self.weighted:
            gaps = gaps * torch.logsumexp(softened(teacher, 1.0) / self.temperature, dim=1).exp()
        return rows.mean(gaps)
