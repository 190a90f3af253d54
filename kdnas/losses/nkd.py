"""Normalised knowledge distillation (Yang et al., ICCV 2023)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, others, over_targets
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class NormalisedKD(DistillationLoss):
    """Normalised KD (Yang 2023): -p_t(target) log p_s(target) + others * T^2 * cross entropy among the other classes.

    Beside the task's cross entropy the target's own weight is the teacher's probability of it; the others are made to
    add up to 1 before they are compared at temperature T. `others` is the authors' gamma: 1.5 at temperature 1 on
    CIFAR-100 and ImageNet, less for a student nearer to its teacher. Usual weight: 1, with task_weight 1.
    """

    needs = frozenset({"logits"})
    of_labels = True

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        others: Annotated[float, Field(ge=0.0)] = 1.5,
        temperature: Temperature = 1.0,
    ):
        super().__init__(student, teacher)
        self.others = others
        self.temperature = temperature

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows, of mixed targets the expectation."""
        return over_targets(rows, lambda target: self._of_row(student.logits, teacher.logits, target))

    def _of_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        place = target[:, None]
        trust = teacher.softmax(dim=1).gather(1, place).squeeze(1)
        of_target = -trust * F.log_softmax(student, dim=1).gather(1, place).squeeze(1)
        ours, theirs = (others(each, target) / self.temperature for each in (student, teacher))
        of_others = -(theirs.softmax(dim=1) * F.log_softmax(ours, dim=1)).sum(dim=1)
        return of_target + self.others * self.temperature**2 * of_others
