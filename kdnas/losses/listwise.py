"""Lists of candidates in their teacher's order, as in RocketQAv2 (Ren et al., EMNLP 2021).

Shapes: n rows of a batch, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._embeddings import Samples, embeddings
from kdnas.nn.directions import directions
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

Temperature = Annotated[float, Field(gt=0.0, le=10.0)]


@LOSSES.register
class Listwise(DistillationLoss):
    """Listwise (RocketQAv2 2021): each sample asks, the others of its batch are a list ranked as the teacher ranks it.

    KL(teacher || student) of the softmax over a list's relevances, the cosines of two embeddings over `temperature`,
    mean over the samples that ask. RocketQAv2's lists are passages that were looked up for a question, of which its
    teacher reads both together; here both sides compare what they made of each alone. Where the data have lists (the
    task text_ranking), `kd` at temperature 1 is RocketQAv2's own loss. Blind to widths: no adapter. The
    first `samples` of a batch are compared. Usual weight: 1.
    """

    needs = frozenset({"embedding"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        temperature: Temperature = 0.05,
        samples: Samples = 1024,
    ):
        super().__init__(student, teacher)
        self.temperature, self.samples = temperature, samples

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the samples; 0 of one alone, which has no list."""
        ours, theirs = (self._lists(each) for each in embeddings(student, teacher, rows, most=self.samples))
        if len(ours) < 2:
            return 0.0 * ours.sum()
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    def _lists(self, embedding: Tensor) -> Tensor:
        """Return the log probabilities [n, n - 1] of the others of each row of an embedding [n, D]."""
        units, count = directions(embedding), len(embedding)
        others = ~torch.eye(count, dtype=torch.bool, device=embedding.device)
        relevances = (units @ units.T / self.temperature)[others].view(count, max(count - 1, 0))
        return relevances.log_softmax(dim=1)
