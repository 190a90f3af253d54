"""Layers of a student and of its teacher as pairs of tokens, the student's brought to the teacher's width.

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from kdnas.nn.matching import Map, channels, match_by_depth, to_tokens
from kdnas.nn.taps import Outputs, OutputShapes


def mean_where(values: Tensor, counts: Tensor | None) -> Tensor:
    """Return the mean of `values` where `counts`, as large, is 1; None: of all. 0 where nothing counts."""
    return values.mean() if counts is None else (values * counts).sum() / counts.sum().clamp_min(1)


def token_mask(outputs: Outputs, stage: Tensor) -> Tensor | None:
    """Return which tokens of a `stage` [B, N, C] are text, [B, N]; None where all count, as the pixels of a map do."""
    mask = outputs.mask
    return mask if mask is not None and stage.ndim == 3 and mask.shape == stage.shape[:2] else None


@dataclass(frozen=True)
class Pair:
    """Tokens [B, N, C] of one layer of each side, as wide as the teacher's."""

    ours: Tensor
    theirs: Tensor
    mask: Tensor | None
    """[B, N]; None where every token counts."""

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` [B, N] over the tokens that count."""
        return mean_where(values, self.mask)


class Layers(nn.Module):
    """A `part` of the matched layers; where widths differ one linear adapter serves all layers of the same widths."""

    def __init__(self, student: OutputShapes, teacher: OutputShapes, by: Map, part: slice = slice(None)):
        super().__init__()
        self.pairs = match_by_depth(len(student.stages), len(teacher.stages), by)[part]
        widths = {(channels(student.stages[s]), channels(teacher.stages[t])) for s, t in self.pairs}
        self.adapters = nn.ModuleDict(
            {
                f"{ours}-{theirs}": nn.Linear(ours, theirs, bias=False)
                for ours, theirs in sorted(widths)
                if ours != theirs
            }
        )

    def forward(self, student: Outputs, teacher: Outputs) -> Iterator[Pair]:
        """Yield the pairs in order."""
        for s, t in self.pairs:
            ours, theirs = to_tokens(student.stages[s], teacher.stages[t])
            adapter = f"{ours.shape[-1]}-{theirs.shape[-1]}"
            mask = token_mask(student, ours)
            yield Pair(self.adapters[adapter](ours) if adapter in self.adapters else ours, theirs, mask)
