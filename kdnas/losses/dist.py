"""Distillation from a stronger teacher: correlations in the place of divergences (Huang et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._divergence import Temperature
from kdnas.nn.directions import directions
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class DIST(DistillationLoss):
    """DIST (Huang 2022): T^2 * (between * (1 - correlation of a row's classes) + within * that of a class's rows).

    Pearson's correlation of the softened probabilities is blind to their scale: the student need not be as sure as a
    much larger teacher. `between` weighs the mean over the rows, `within` that over the classes. Usual weight: 1, with
    task_weight 1; the authors' temperature is 1 on ImageNet and 4 on CIFAR-100.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        between: Annotated[float, Field(ge=0.0)] = 1.0,
        within: Annotated[float, Field(ge=0.0)] = 1.0,
        temperature: Temperature = 1.0,
    ):
        super().__init__(student, teacher)
        self.between = between
        self.within = within
        self.temperature = temperature

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the weighted sum of both; the correlation of a class counts its rows by their weights."""
        ours, theirs = ((each.logits / self.temperature).softmax(dim=1) for each in (student, teacher))
        between = rows.mean(1 - _correlation(ours, theirs, torch.ones_like(ours)))
        weights = torch.ones_like(ours[:, 0]) if rows.weights is None else rows.weights
        within = (1 - _correlation(ours.T, theirs.T, weights.expand(ours.shape[1], -1))).mean()
        return self.temperature**2 * (self.between * between + self.within * within)


def _correlation(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Return Pearson's correlation [M] of the rows of `a` and `b` [M, V], whose places count by `weights` [M, V]."""
    whole = weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
    a, b = (weights.sqrt() * (each - (weights * each).sum(dim=1, keepdim=True) / whole) for each in (a, b))
    return (directions(a) * directions(b)).sum(dim=1)
