"""Correlation congruence (Peng et al., ICCV 2019), in the form of Tian et al. (ICLR 2020).

Shapes: n rows of a batch, D width.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._embeddings import embeddings
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class CorrelationCongruence(DistillationLoss):
    """Correlation congruence (Peng 2019): products of the differences that neighbours in the batch have.

    Linear heads map both embeddings to `width` numbers; of the absolute differences d_i of student and teacher the loss
    is the mean of the sums of d_i * d_(i+1). Usual weight: 0.02, with kd or with task_weight 1.
    """

    needs = frozenset({"embedding"})
    usual_weight = 0.02

    def __init__(
        self, student: OutputShapes, teacher: OutputShapes, *, width: Annotated[int, Field(ge=1, le=4096)] = 128
    ):
        super().__init__(student, teacher)
        self.heads = nn.ModuleList(nn.Linear(side.embedding, width) for side in (student, teacher))

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the pairs of neighbours; 0 where there are none."""
        ours, theirs = (head(each) for head, each in zip(self.heads, embeddings(student, teacher, rows), strict=True))
        apart = (ours - theirs).abs()
        return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)
