"""Weighted soft labels (Zhou et al., ICLR 2021)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, over_targets
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_NONE = 1e-7
"""Added to the teacher's cross entropy, by which that of the student is divided."""


@LOSSES.register
class WeightedSoftLabels(DistillationLoss):
    """Weighted soft labels (Zhou 2021): T^2 * cross entropy with the teacher's softened classes, less where it is easy.

    A row counts by 1 - exp(-CE of the student / CE of the teacher), both with the label at temperature 1, a constant to
    gradients: what the student predicts as well as its teacher is left to the labels. Usual weight: 2.5, with
    task_weight 1.
    """

    needs = frozenset({"logits"})
    usual_weight = 2.5
    of_labels = True

    def __init__(self, student: OutputShapes, teacher: OutputShapes, *, temperature: Temperature = 2.0):
        super().__init__(student, teacher)
        self.temperature = temperature

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows, of mixed targets the expectation."""
        ours, theirs = (each.logits / self.temperature for each in (student, teacher))
        soft = -(theirs.softmax(dim=1) * F.log_softmax(ours, dim=1)).sum(dim=1)

        def of_row(target: Tensor) -> Tensor:
            missed, known = (
                F.cross_entropy(each.logits.detach(), target, reduction="none") for each in (student, teacher)
            )
            return -(-missed / (known + _NONE)).expm1() * soft

        return self.temperature**2 * over_targets(rows, of_row)
