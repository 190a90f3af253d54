"""Hinton's distillation of softened logits (Hinton, Vinyals and Dean, NIPS workshop 2014)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, standardised
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class HintonKD(DistillationLoss):
    """Softened logits (Hinton 2014): T^2 * KL(teacher || student) at temperature T.

    T^2 keeps the gradient's scale about the same over T; for large T it becomes (student - teacher logits) / K.
    Tian et al. weigh it 0.9 with task_weight 0.1, the defaults of a study. `standardise` learns logits less
    their mean and over their deviation in each row (Sun et al., CVPR 2024; theirs: temperature 2, weight 9,
    task_weight 0.1), so that the student need not have logits as large as its teacher's.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        temperature: Temperature = 4.0,
        standardise: bool = False,
    ):
        super().__init__(student, teacher)
        self.temperature = temperature
        self.standardise = standardise

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows."""
        logits = student.logits, teacher.logits
        if self.standardise:
            logits = standardised(logits[0]), standardised(logits[1])
        ours, theirs = (F.log_softmax(each / self.temperature, dim=1) for each in logits)
        if rows.weights is None:
            divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        else:
            divergence = rows.mean(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1))
        return divergence * self.temperature**2
