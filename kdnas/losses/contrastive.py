"""Contrast with the other samples of a batch (van den Oord et al., "InfoNCE", 2018; Sun et al., EMNLP 2020, for BERT).

Shapes: n rows of a batch, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._embeddings import Samples, embeddings
from kdnas.nn.directions import directions
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class Contrastive(DistillationLoss):
    """Contrast (InfoNCE 2018): which embedding of the teacher's batch belongs to the student's, by cosines.

    Cross entropy of the cosines over `temperature`, the right answer being the teacher's embedding of the same sample,
    the wrong ones those of the others: the first `samples` of a batch. A linear adapter maps the student's embedding to
    the teacher's width where they differ. Usual weight: 1.
    """

    needs = frozenset({"embedding"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        temperature: Annotated[float, Field(gt=0.0, le=10.0)] = 0.07,
        samples: Samples = 1024,
    ):
        super().__init__(student, teacher)
        self.temperature, self.samples = temperature, samples
        self.adapter: nn.Module = nn.Identity()
        if student.embedding != teacher.embedding:
            self.adapter = nn.Linear(student.embedding, teacher.embedding, bias=False)

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the samples."""
        ours, theirs = embeddings(student, teacher, rows, most=self.samples)
        cosines = directions(self.adapter(ours)) @ directions(theirs).T / self.temperature
        return F.cross_entropy(cosines, torch.arange(len(cosines), device=cosines.device))
