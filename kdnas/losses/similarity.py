"""Similarity-preserving knowledge distillation (Tung and Mori, ICCV 2019)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import token_mask
from kdnas.nn.directions import bounded, directions
from kdnas.nn.matching import match_stages
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class SimilarityPreserving(DistillationLoss):
    """Similarity-preserving KD (Tung 2019): mean squared difference of the batch's similarity matrices [B, B].

    A matrix is F F^T of the flattened features of the last matched stage, each row scaled to length 1. Blind to a
    rotation of the features and to widths and sizes, so no adapter is needed. Padding does not count.
    Usual weight: 3000, with task_weight 1.
    """

    needs = frozenset({"stages"})
    usual_weight = 3000.0

    def __init__(self, student: OutputShapes, teacher: OutputShapes):
        super().__init__(student, teacher)
        pairs = match_stages(student.stages, teacher.stages)
        self.student_stage, self.teacher_stage = pairs[-1]

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the matrix."""
        ours, theirs = student.stages[self.student_stage], teacher.stages[self.teacher_stage]
        if (mask := token_mask(student, ours)) is not None:
            ours, theirs = (features * mask.unsqueeze(-1) for features in (ours, theirs))
        return F.mse_loss(_similarities(ours), _similarities(theirs))


def _similarities(features: Tensor) -> Tensor:
    """Return the rows of F F^T, each scaled to length 1: how long a row's own features are does not change it."""
    flat = features.flatten(1)
    return directions(directions(flat) @ bounded(flat, dim=(0, 1)).T)
