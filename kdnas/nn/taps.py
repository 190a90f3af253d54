"""Feature taps: read a network's stage outputs and embedding with hooks, leaving the network as it is.

Shapes: B batch, K classes, C channels, H and W height and width, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """What a network gave for one batch: `logits` [B, K], `stages` each [B, C, H, W], `embedding` [B, D]."""

    logits: Tensor
    stages: tuple[Tensor, ...] = ()
    embedding: Tensor | None = None


@dataclass(frozen=True)
class OutputShapes:
    """The shapes of `Outputs` without the batch: classes, each stage's (C, H, W), and the embedding's width."""

    num_classes: int
    stages: tuple[tuple[int, int, int], ...] = ()
    embedding: int = 0
