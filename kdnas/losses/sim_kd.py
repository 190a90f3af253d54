"""Reused classifier: SimKD (Chen et al., CVPR 2022).

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.nn.matching import to_common_size
from kdnas.nn.precision import in_float32, squared
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class ReusedClassifier(DistillationLoss):
    """Reused classifier, SimKD (Chen 2022): squared error of the last maps, which both sides' one classifier reads.

    Students are of a space that fixes `projected` to the channels that the teacher's classifier takes: their last maps
    are projected to these, and that classifier is theirs, as it is; all of it counts in their costs. The mean over the
    batch, channels and positions; of two maps the larger is average-pooled. Usual weight: 1, with
    task_weight 0; a mean of small maps' differences is small, so that brief trainings may want more.
    """

    needs = frozenset({"stages", "classifier"})

    def __init__(self, student: OutputShapes, teacher: OutputShapes):
        super().__init__(student, teacher)
        own, reused = student.classifier, teacher.classifier
        assert reused is not None
        if not teacher.pooled:
            what = "sim_kd: the teacher's linear classifier does not read its last maps, pooled"
            raise ConfigError(Problem("", what, "a teacher whose does, as most convolutional networks'"))
        same = own is not None and student.pooled and own.weight.shape == reused.weight.shape
        if not (same and own is not None and torch.equal(own.weight.float(), reused.weight.float())):
            what = "sim_kd: the student does not end in its teacher's classifier"
            width = reused.weight.shape[1]
            allowed = f"students of a space with `projected: {width}` under `fixed` (families resnet, mobilenet)"
            raise ConfigError(Problem("", what, allowed))

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the batch and the maps."""
        ours, theirs = to_common_size(student.stages[-1], teacher.stages[-1])
        return squared(ours - theirs).mean()
