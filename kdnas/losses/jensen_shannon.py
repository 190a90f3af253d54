"""Generalised Jensen-Shannon divergence of logits (Agarwal et al., "On-policy distillation", ICLR 2024)."""

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
class JensenShannon(DistillationLoss):
    """Generalised JS (GKD 2024): beta * KL(teacher || m) + (1 - beta) * KL(student || m) of each row's mixture m.

    m is beta * teacher + (1 - beta) * student. Divided by beta it becomes the KL of kd as beta nears 0, divided by
    1 - beta reverse_kl as it nears 1. As its authors have it there is no factor T^2. Usual weight: 1.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5,
        temperature: Temperature = 1.0,
    ):
        super().__init__(student, teacher)
        self.beta = beta
        self.temperature = temperature

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows."""
        ours, theirs = (softened(outputs, self.temperature) for outputs in (student, teacher))
        between = mixture(theirs, ours, self.beta)
        return rows.mean(self.beta * kl(theirs, between) + (1.0 - self.beta) * kl(ours, between))
