"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

from __future__ import annotations

from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._embeddings import Samples, embeddings
from kdnas.nn.directions import directions
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_NONE = 1e-7
"""Added to probabilities before their logarithm, as the authors do."""


@LOSSES.register
class ProbabilisticTransfer(DistillationLoss):
    """Probabilistic transfer (Passalis 2018): divergence of the batch's similarities, each row of them a distribution.

    A similarity is (1 + cosine) / 2 of two embeddings, over the sum of its row; the loss is the mean of
    p_t log(p_t / p_s) over the matrix, as in the authors' code. Blind to widths and scales: no adapter. The first
    `samples` of a batch are compared. Usual weight: 30000, with task_weight 1.
    """

    needs = frozenset({"embedding"})
    usual_weight = 30000.0

    def __init__(self, student: OutputShapes, teacher: OutputShapes, *, samples: Samples = 1024):
        super().__init__(student, teacher)
        self.samples = samples

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the matrix."""
        ours, theirs = (_alike(each) for each in embeddings(student, teacher, rows, most=self.samples))
        return (theirs * ((theirs + _NONE) / (ours + _NONE)).log()).mean()


def _alike(embedding: Tensor) -> Tensor:
    """Return the similarities [n, n] of embeddings [n, D], whose rows add up to 1."""
    units = directions(embedding)
    similarity = (units @ units.T + 1.0) / 2.0
    return similarity / similarity.sum(dim=1, keepdim=True)
