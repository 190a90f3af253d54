"""Exits of a network's own, which learn of its end (Zhang et al., "Be your own teacher", ICCV 2019)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature, kl, softened
from kdnas.losses._layers import token_mask
from kdnas.nn.matching import channels
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class Exits(DistillationLoss):
    """Own exits (Zhang 2019): (1 - share) * cross entropy + share * T^2 * KL(end || exit), summed over inner stages.

    With `of: self` the end is the student's own, and no teacher is asked. An exit is the mean over a stage's places and
    a perceptron of one hidden layer, twice as wide; the authors' have convolutions, and in addition a hint of weight
    1e-6. They train with the student and are no part of it. Usual weight: 1, with task_weight 1.
    """

    needs = frozenset({"logits", "stages"})
    of_itself = True
    of_labels = True

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        temperature: Temperature = 3.0,
        share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1,
    ):
        super().__init__(student, teacher)
        if len(student.stages) < 2:
            raise ConfigError(Problem("", "exits stand behind stages that are not the last, and the student has one"))
        self.temperature = temperature
        self.share = share
        widths = [channels(stage) for stage in student.stages[:-1]]
        self.exits = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, student.outputs)
            )
            for width in widths
        )

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the exits of the mean over the batch."""
        total = rows.logits.new_zeros(())
        for stage, leave in zip(student.stages, self.exits, strict=False):
            tokens = stage.flatten(2).transpose(1, 2) if stage.ndim == 4 else stage
            mask = token_mask(student, stage)
            counts = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
            pooled = (tokens * counts.unsqueeze(-1)).sum(dim=1) / counts.sum(dim=1, keepdim=True).clamp_min(1)
            logits = leave(pooled)
            if len(logits) != len(rows.logits):
                raise ConfigError(Problem("", "exits answer once for a sample, and the task asks for more answers"))
            labels = rows.mean(F.cross_entropy(logits, rows.targets, reduction="none"))
            end, ours = (softened(outputs, self.temperature) for outputs in (teacher, Outputs(logits)))
            apart = rows.mean(kl(end, ours))
            total = total + (1 - self.share) * labels + self.share * self.temperature**2 * apart
        return total
