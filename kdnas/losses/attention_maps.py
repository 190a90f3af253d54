"""Attention maps of layers: TinyBERT's scores (Jiao et al., EMNLP Findings 2020), MiniLM's and MobileBERT's shares.

Shapes: B batch, N tokens, h heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES, DistillationLoss
from kdnas.losses._layers import mean_where
from kdnas.nn.attention import causal_mask
from kdnas.nn.matching import Map, match_by_depth
from kdnas.nn.precision import in_float32, squared
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes


@LOSSES.register
class AttentionMaps(DistillationLoss):
    """Attention maps: who looks at whom in matched layers, as scores (TinyBERT 2020) or as shares (MiniLM 2020).

    `compare` is `mse`, the mean squared error of the scores before their softmax, added up over the layers, or `kl`,
    the divergence of the student's shares from the teacher's, mean over heads, tokens and layers. `map` matches layers
    as in hidden. Where both have other numbers of heads their mean over the heads is compared. Maps are computed from
    queries and keys, so that the networks may attend by any kernel; rotary positions stand between, such networks are
    refused: relations serves them. Padding does not count. Usual weight: 1.
    """

    needs = frozenset({"attention"})

    def __init__(
        self,
        student: OutputShapes,
        teacher: OutputShapes,
        *,
        compare: Literal["mse", "kl"] = "mse",
        map: Map = "uniform",
    ):
        super().__init__(student, teacher)
        for name, shapes in (("student", student), ("teacher", teacher)):
            if not all(layer.plain for layer in shapes.attention):
                raise ConfigError(
                    Problem(
                        "",
                        f"rotary positions or norms stand between the {name}'s queries and its attention_maps",
                        "relations",
                    )
                )
        if {layer.tokens for layer in student.attention} != {layer.tokens for layer in teacher.attention}:
            raise ConfigError(Problem("", "attention_maps of other numbers of tokens cannot be compared", "relations"))
        self.pairs = match_by_depth(len(student.attention), len(teacher.attention), map)
        self.compare = compare

    @in_float32
    def forward(self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        """Return the sum over the layers of scores, the mean over the layers of shares."""
        values = [self._layer(student, teacher, s, t) for s, t in self.pairs]
        return torch.stack(values).sum() if self.compare == "mse" else torch.stack(values).mean()

    def _layer(self, student: Outputs, teacher: Outputs, s: int, t: int) -> Tensor:
        ours, theirs = student.attention[s].scores(), teacher.attention[t].scores()
        seen = _seen(ours, student.mask, causal=student.attention[s].causal)
        looking = torch.ones_like(ours[:, 0, :, 0]) if student.mask is None else student.mask.float()
        if self.compare == "kl":
            ours, theirs = (scores.masked_fill(~seen, -torch.inf).softmax(-1) for scores in (ours, theirs))
        if ours.shape[1] != theirs.shape[1]:
            ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
        if self.compare == "mse":
            counts = (seen & (looking > 0)[:, None, :, None]).expand_as(ours).float()
            return mean_where(squared(ours - theirs), counts)
        least = torch.finfo(ours.dtype).tiny
        gaps = F.kl_div(ours.clamp_min(least).log(), theirs, reduction="none").sum(-1).mean(1)
        return mean_where(gaps, looking)


def _seen(scores: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Return bool [B, 1, N, N]: which tokens a token may look at."""
    tokens = scores.shape[-1]
    seen = torch.ones(len(scores), 1, tokens, tokens, dtype=torch.bool, device=scores.device)
    if causal:
        seen = seen & causal_mask(tokens, scores.device)
    return seen if mask is None else seen & (mask > 0)[:, None, None, :]
