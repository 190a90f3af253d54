"""Skewed divergence of logits (Ko et al., "DistiLLM", ICML 2024)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, kl, mixture, softened
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class SkewKL(DistillationLoss):
    """Skew KL (DistiLLM 2024): KL(teacher || skew * teacher + (1 - skew) * student), for every row.

    `reverse` is KL(student || skew * student + (1 - skew) * teacher). The mixture keeps gradients bounded where one of
    them finds impossible what the other finds likely. As its authors have it there is no factor T^2. Usual weight: 1.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        skew: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1,
        reverse: bool = False,
        temperature: Temperature = 1.0,
    ):
        super().__init__(student, teacher)
        self.skew = skew
        self.reverse = reverse
        self.temperature = temperature

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows."""
        ours, theirs = (softened(outputs, self.temperature) for outputs in (student, teacher))
        first, second = (ours, theirs) if self.reverse else (theirs, ours)
        return rows.mean(kl(first, mixture(first, second, self.skew)))
