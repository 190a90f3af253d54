"""Patient knowledge distillation (Sun et al., EMNLP 2019).

Shapes: B batch, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnas.errors import ConfigError
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import Layers
from kdnas.nn.directions import directions
from kdnas.nn.matching import Map
from kdnas.nn.precision import in_float32
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class Patient(DistillationLoss):
    """Patient KD (Sun 2019): mean squared error of the first tokens' directions in all matched layers but the last.

    The first token is [CLS], which classifiers read; of a map it is the mean over its pixels. `map` is `uniform` (the
    paper's "skip", its better one), `top` (its "last") or `bottom`. The mean is over batch, layers and channels, as in
    the authors' code. Where the widths differ one linear adapter maps the student's. Usual weight: 500, the authors'
    example, with kd.
    """

    needs = frozenset({"stages"})
    usual_weight = 500.0

    def __init__(self, student: OutputShapes, teacher: OutputShapes, *, map: Map = "uniform"):
        super().__init__(student, teacher)
        self.layers = Layers(student, teacher, map, slice(None, -1))
        if not self.layers.pairs:
            raise ConfigError("the loss patient learns all matched layers but the last: there have to be two")

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the mean over batch, layers and channels."""
        gaps = []
        for (s, t), pair in zip(self.layers.pairs, self.layers(student, teacher), strict=True):
            ours, theirs = (
                tokens.mean(1) if stage.ndim == 4 else tokens[:, 0]
                for tokens, stage in ((pair.ours, student.stages[s]), (pair.theirs, teacher.stages[t]))
            )
            gaps.append(F.mse_loss(directions(ours), directions(theirs)))
        return torch.stack(gaps).mean()
