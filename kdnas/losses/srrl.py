"""Softmax regression representation learning (Yang et al., ICLR 2021)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._embeddings import counted, embeddings
from kdnas.losses._layers import set_norm
from kdnas.nn.precision import in_float32, squared
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class SoftmaxRegression(DistillationLoss):
    """Softmax regression (Yang 2021): the student's embedding, mapped, is to mean the same to the teacher's classifier.

    The mapped embedding's mean squared error from the teacher's, plus that of what the teacher's own classifier, which
    is frozen, makes of it from the teacher's logits. The map is linear with batch norm and, unless `relu` is false
    (for teachers whose embeddings go below 0), a ReLU; the authors put it before the pooling. Usual weight: 1, with
    task_weight 1.
    """

    needs = frozenset({"logits", "embedding", "classifier"})
    weight: Tensor
    bias: Tensor

    def __init__(self, student: OutputShapes, teacher: OutputShapes, *, relu: bool = True):
        super().__init__(student, teacher)
        head = teacher.classifier
        assert head is not None
        layers: list[nn.Module] = [nn.Linear(student.embedding, teacher.embedding, bias=False)]
        self.adapter = nn.Sequential(*layers, nn.BatchNorm1d(teacher.embedding), *([nn.ReLU()] if relu else []))
        weight = head.weight.detach().float()
        bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().float()
        self.register_buffer("weight", weight.clone(), persistent=False)
        self.register_buffer("bias", bias.clone(), persistent=False)

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum of both means."""
        ours, theirs = embeddings(student, teacher, rows)
        (logits,) = counted(rows, teacher.logits)
        set_norm(self.adapter[1], ours, training=self.training)
        mapped = self.adapter(ours)
        classified = F.linear(mapped, self.weight, self.bias)
        return squared(mapped - theirs).mean() + squared(classified - logits).mean()
