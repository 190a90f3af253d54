"""Multi-level logit distillation: rows, classes and batch (Jin, Wang and Lin, CVPR 2023).

Shapes: M rows, V outputs.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, standardised
from kdnas.losses._embeddings import Samples, counted
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_MOST_OUTPUTS = 4096
"""A matrix of more outputs than that, squared, is no part of a step."""


@LOSSES.register
class MultiLevelLogits(DistillationLoss):
    """Multi-level logits (Jin 2023): kd, agreement of classes and agreement of samples, over several temperatures.

    At each T, with probabilities P [rows, classes]: T^2 * KL, plus the squared differences of P'P over the number of
    classes, plus those of PP' over the number of rows (the first `samples` of the batch), added up over
    `temperatures`. The authors' second, strongly augmented view and their masks of unsure samples are no part of it.
    `standardise` as in kd. Usual weight: 1, with task_weight 1.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1, max_length=16)] = (
            2.0,
            3.0,
            4.0,
            5.0,
            6.0,
        ),
        samples: Samples = 1024,
        standardise: bool = False,
    ):
        super().__init__(student, teacher)
        if student.outputs > _MOST_OUTPUTS:
            what = f"the agreement of {student.outputs:,} outputs with each other is too large a matrix"
            raise ConfigError(Problem("type", f"mlld: {what}", f"at most {_MOST_OUTPUTS:,} outputs"))
        self.temperatures, self.samples, self.standardise = temperatures, samples, standardise

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the temperatures."""
        logits = student.logits, teacher.logits
        if self.standardise:
            logits = standardised(logits[0]), standardised(logits[1])
        return sum(
            (self._at(*logits, rows, temperature) for temperature in self.temperatures), rows.logits.new_zeros(())
        )

    def _at(self, student: Tensor, teacher: Tensor, rows: Rows, temperature: float) -> Tensor:
        ours, theirs = (F.log_softmax(each / temperature, dim=1) for each in (student, teacher))
        of_rows = temperature**2 * rows.mean(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1))
        p, q = counted(rows, ours.exp(), theirs.exp(), most=self.samples)
        of_classes = (p.T @ p - q.T @ q).square().sum() / p.shape[1]
        of_samples = (p @ p.T - q @ q.T).square().sum() / max(len(p), 1)
        return of_rows + of_classes + of_samples
