"""Hidden states of layers, as in TinyBERT (Jiao et al., EMNLP Findings 2020).

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import Layers
from kdnas.nn.matching import Map
from kdnas.nn.precision import in_float32, squared
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class HiddenStates(DistillationLoss):
    """Hidden states (TinyBERT 2020): mean squared error of the tokens of matched layers, added up over the layers.

    Layers are matched by `map`: `uniform` by relative depth, `top` or `bottom`. Where the widths differ one linear
    adapter, the same for all layers, maps the student's tokens to the teacher's width. Tokens that are padding do not
    count; the pixels of a map are its tokens. Usual weight: 1, TinyBERT's.
    """

    needs = frozenset({"stages"})

    def __init__(self, student: OutputShapes, teacher: OutputShapes, *, map: Map = "uniform"):
        super().__init__(student, teacher)
        self.layers = Layers(student, teacher, map)

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the layers."""
        return torch.stack(
            [pair.mean(squared(pair.ours - pair.theirs).mean(-1)) for pair in self.layers(student, teacher)]
        ).sum()
