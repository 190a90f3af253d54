"""The teacher's decisions as labels (Touvron et al., "Training data-efficient image transformers", ICML 2021)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs


@LOSSES.register
class HardLabels(DistillationLoss):
    """Hard labels (DeiT 2021): cross entropy with the class that the teacher finds most likely.

    DeiT takes it for the distillation token of a vit, at weight 0.5 with task_weight 0.5.
    """

    needs = frozenset({"logits"})
    usual_weight = 0.5

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows."""
        return rows.mean(F.cross_entropy(student.logits, teacher.logits.argmax(dim=1), reduction="none"))
