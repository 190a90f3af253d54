"""Class attention transfer (Guo et al., CVPR 2023).

Shapes: B batch, V classes, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.nn.directions import directions
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class ClassAttention(DistillationLoss):
    """Class attention (Guo 2023): where each class is seen, by the classifier's weights on the last maps.

    A class's map is the last stage's map under the class's weights, pooled to `pool` x `pool` and of length 1; the loss
    is the mean squared difference. The student's weights learn by it, too. Both classifiers have to read the pooled
    last maps. Usual weight: 1, with task_weight 1; the authors' goes from 0.5 to 600 with the pair, mostly 1 to 15.
    """

    needs = frozenset({"stages", "classifier"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        pool: Annotated[int, Field(ge=1, le=64)] = 2,
    ):
        super().__init__(student, teacher)
        for name, side in (("student", student), ("teacher", teacher)):
            if side.classifier is None or not side.pooled:
                what = f"cat_kd: the {name} has no linear classifier of its last maps, which are {side.stages[-1]}"
                raise ConfigError(Problem("", what, "a last stage of maps whose channels are classified, pooled"))
        self.pool = pool
        # In a tuple they are no part of this module: the student's is trained as the student's.
        self._classifiers = (student.classifier, teacher.classifier)

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over batch, classes and positions."""
        head, fixed = self._classifiers
        assert head is not None
        assert fixed is not None
        ours, theirs = self._seen(student, head.weight), self._seen(teacher, fixed.weight.detach())
        return F.mse_loss(ours, theirs)

    def _seen(self, outputs: Outputs, weight: Tensor) -> Tensor:
        """Return the maps [B, V, pool * pool] of classes."""
        pooled = F.adaptive_avg_pool2d(outputs.stages[-1], self.pool).flatten(2)
        return directions(weight.to(pooled.dtype) @ pooled)
