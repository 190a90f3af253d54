"""Decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, others, over_targets, standardised
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class DecoupledKD(DistillationLoss):
    """Decoupled KD (Zhao 2022): T^2 * (target_weight * target-class KL + non_target_weight * KL among the others).

    The target part compares [p(target), 1 - p(target)], the other part the softmax over the classes but the target.
    With target_weight 1 and non_target_weight 1 - p_teacher(target) it would be Hinton's KD. The paper's
    non_target_weight is 2 for plain ResNets, 6 to 8 for wider ones. `standardise` as in kd. Usual weight: 1, with
    task_weight 1 and, as the authors' 20 of 240 epochs, warmup_fraction 0.083: brief trainings gain by it, too.
    """

    needs = frozenset({"logits"})
    of_labels = True

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        target_weight: Annotated[float, Field(ge=0.0)] = 1.0,
        non_target_weight: Annotated[float, Field(ge=0.0)] = 2.0,
        temperature: Temperature = 4.0,
        standardise: bool = False,
    ):
        super().__init__(student, teacher)
        self.target_weight = target_weight
        self.non_target_weight = non_target_weight
        self.temperature = temperature
        self.standardise = standardise

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows, of mixed targets the expectation."""
        return over_targets(rows, lambda target: self._per_row(student.logits, teacher.logits, target))

    def _per_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        if self.standardise:
            student, teacher = standardised(student), standardised(teacher)
        target_s, others_s = _decouple(student / self.temperature, target)
        target_t, others_t = _decouple(teacher / self.temperature, target)
        target_part = _kl(target_t, target_s)
        others_part = _kl(others_t, others_s)
        return self.temperature**2 * (self.target_weight * target_part + self.non_target_weight * others_part)


def _decouple(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log probabilities: [target, not target] [M, 2], and among the other classes [M, V - 1]."""
    rest = others(logits, target)
    pair = torch.cat([logits.gather(1, target[:, None]), rest.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(rest, dim=1)


def _kl(theirs: Tensor, ours: Tensor) -> Tensor:
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
