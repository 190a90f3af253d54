"""Feature maps and their statistics, as in MobileBERT (Sun et al., ACL 2020).

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import Layers
from kdnas.nn.matching import Map
from kdnas.nn.precision import in_float32, squared
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

Weight = Annotated[float, Field(ge=0.0)]


@LOSSES.register
class FeatureStatistics(DistillationLoss):
    """Feature statistics (MobileBERT 2020): normed tokens, their means and their variances, mean over matched layers.

    A token's part is `features` x the mean squared error of it normed (zero mean, variance 1 over the channels), plus
    `mean` x the squared difference of its means, plus `variance` x the absolute one of its variances: MobileBERT's 100,
    5000 and 5 (its attention term is the loss attention_maps with `compare: kl`). Where the widths differ one linear
    adapter maps the student's tokens. Padding does not count. Usual weight: 1.
    """

    needs = frozenset({"stages"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        map: Map = "uniform",
        features: Weight = 100.0,
        mean: Weight = 5000.0,
        variance: Weight = 5.0,
    ):
        super().__init__(student, teacher)
        self.layers = Layers(student, teacher, map)
        self.of_features, self.of_mean, self.of_variance = features, mean, variance

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over the layers."""
        return torch.stack(
            [pair.mean(self._tokens(pair.ours, pair.theirs)) for pair in self.layers(student, teacher)]
        ).mean()

    def _tokens(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return the loss of each token [B, N]."""
        width = (theirs.shape[-1],)
        normed = (F.layer_norm(ours, width) - F.layer_norm(theirs, width)).square().mean(-1)
        means = squared(ours.mean(-1) - theirs.mean(-1))
        variances = (ours.var(-1, correction=0) - theirs.var(-1, correction=0)).abs()
        return self.of_features * normed + self.of_mean * means + self.of_variance * variances
