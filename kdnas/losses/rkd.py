"""Relational knowledge distillation (Park et al., CVPR 2019)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._embeddings import embeddings
from kdnas.nn.directions import bounded
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

_SMALLEST = 1e-6
"""Of the batch's spread: shorter distances are rounding."""


@LOSSES.register
class RelationalKD(DistillationLoss):
    """Relational KD (Park 2019): smooth-L1 of the pair distances (over their mean) and triplet angles of embeddings.

    Blind to rotation and scale, so widths may differ and no adapter is needed. Angles take B^3 numbers: they use the
    first `angle_samples` of the (shuffled) batch. Rows of weight 0 do not count.
    Usual weight: 1 (these weigh the two parts), with task_weight 1.
    """

    needs = frozenset({"embedding"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        distance_weight: Annotated[float, Field(ge=0.0)] = 25.0,
        angle_weight: Annotated[float, Field(ge=0.0)] = 50.0,
        angle_samples: Annotated[int, Field(ge=3, le=1024)] = 128,
    ):
        super().__init__(student, teacher)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.angle_samples = angle_samples

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return distance_weight * distance term + angle_weight * angle term."""
        ours, theirs = map(_spread, embeddings(student, teacher, rows))
        distance = F.smooth_l1_loss(_relative_distances(ours), _relative_distances(theirs))
        angle = F.smooth_l1_loss(_angles(ours[: self.angle_samples]), _angles(theirs[: self.angle_samples]))
        return self.distance_weight * distance + self.angle_weight * angle


def _spread(embedding: Tensor) -> Tensor:
    """Return the embeddings [B, D] around their mean over the largest deviation; ratios and angles stay."""
    return bounded(embedding - embedding.detach().mean(dim=0), dim=(0, 1))


def _relative_distances(embedding: Tensor) -> Tensor:
    """Return Euclidean pair distances [B, B] over the mean of those that are not zero."""
    distances = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=_SMALLEST)


def _angles(embedding: Tensor) -> Tensor:
    """Return cosines [B, B, B]: at [i, j, k] that of the angle at sample i between the ways to j and to k."""
    ways = embedding[None, :, :] - embedding[:, None, :]
    lengths = ways.norm(dim=2, keepdim=True)
    # Coinciding samples have no direction; a plain division would give them a huge gradient.
    units = torch.where(lengths > _SMALLEST, ways / lengths.clamp(min=_SMALLEST), torch.zeros_like(ways))
    return units @ units.transpose(1, 2)
