"""Reverse divergence of softened logits (Gu et al., "MiniLLM", ICLR 2024)."""

from __future__ import annotations

from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, kl, softened
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class ReverseKL(DistillationLoss):
    """Reverse KL (MiniLLM 2024): T^2 * KL(student || teacher) at temperature T, for every row.

    The divergence of a row is exact; MiniLLM's samples of the student's own texts are not part of it. Where kd has the
    student cover all that its teacher finds likely, this one has it leave out what that finds unlikely. Weight: 1.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        temperature: Temperature = 1.0,
    ):
        super().__init__(student, teacher)
        self.temperature = temperature

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows."""
        ours, theirs = (softened(outputs, self.temperature) for outputs in (student, teacher))
        return self.temperature**2 * rows.mean(kl(ours, theirs))
