"""Layers of a student and of its teacher as pairs: tokens, which may be brought to the teacher's width, or maps.

Shapes: B batch, N tokens, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from kdnas.nn.matching import Map, channels, match_by_depth, to_common_size, to_tokens
from kdnas.nn.taps import Outputs, OutputShapes


def mean_where(values: Tensor, counts: Tensor | None) -> Tensor:
    """Return the mean of `values` where `counts`, as large, is 1; None: of all. 0 where nothing counts."""
    return values.mean() if counts is None else (values * counts).sum() / counts.sum().clamp_min(1)


def token_mask(outputs: Outputs, stage: Tensor) -> Tensor | None:
    """Return which tokens of a `stage` [B, N, C] are text, [B, N]; None where all count, as the pixels of a map do."""
    mask = outputs.mask
    return mask if mask is not None and stage.ndim == 3 and mask.shape == stage.shape[:2] else None


def set_norm(norm: nn.Module, values: Tensor, *, training: bool) -> None:
    """Let batch norm use the statistics of `values` [B, C, ...] in training.

    One value a channel has no variance: such a batch is normalised by the statistics of those before it.
    """
    norm.train(training and values.numel() > values.shape[1])


@dataclass(frozen=True)
class Pair:
    """Tokens [B, N, C] of one layer of each side."""

    ours: Tensor
    theirs: Tensor
    mask: Tensor | None
    """[B, N]; None where every token counts."""

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` [B, N] over the tokens that count."""
        return mean_where(values, self.mask)


def tokens(student: Outputs, teacher: Outputs, s: int, t: int) -> Pair:
    """Return stage `s` of the student and `t` of the teacher as tokens of their own widths."""
    ours, theirs = to_tokens(student.stages[s], teacher.stages[t])
    return Pair(ours, theirs, token_mask(student, ours))


def maps(student: Outputs, teacher: Outputs, s: int, t: int) -> tuple[Tensor, Tensor]:
    """Return stage `s` of the student and `t` of the teacher as maps [B, C, H, W] of one size, what is padding 0."""
    mask = token_mask(student, student.stages[s])
    ours, theirs = to_common_size(student.stages[s], teacher.stages[t])
    if mask is None:
        return ours, theirs
    return ours * mask[:, None, :, None], theirs * mask[:, None, :, None]


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
        """Yield the pairs in order, as wide as the teacher's."""
        for s, t in self.pairs:
            pair = tokens(student, teacher, s, t)
            adapter = f"{pair.ours.shape[-1]}-{pair.theirs.shape[-1]}"
            yield replace(pair, ours=self.adapters[adapter](pair.ours)) if adapter in self.adapters else pair
