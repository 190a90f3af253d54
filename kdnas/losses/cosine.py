"""Cosine similarity of embeddings, as in the cosine term of DistilBERT (Sanh et al., NeurIPS workshop 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.nn.directions import directions
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class Cosine(DistillationLoss):
    """Embeddings by direction: mean of 1 - cosine(student, teacher), in 0..2.

    Where the widths differ a linear adapter maps the student's embedding to the teacher's width. An embedding of zeros
    has cosine 0 with any other. Usual weight: 1, DistilBERT's, with kd at 5 and the task at 2.
    """

    needs = frozenset({"embedding"})

    def __init__(self, student: OutputShapes, teacher: OutputShapes):
        super().__init__(student, teacher)
        self.adapter: nn.Module = nn.Identity()
        if student.embedding != teacher.embedding:
            self.adapter = nn.Linear(student.embedding, teacher.embedding, bias=False)

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the rows, by their weights."""
        assert student.embedding is not None
        assert teacher.embedding is not None
        ours, theirs = directions(self.adapter(student.embedding)), directions(teacher.embedding)
        return rows.mean(1 - (ours * theirs).sum(dim=1))
