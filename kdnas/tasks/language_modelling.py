"""Running text and the token that follows each one.

torch is imported where it is used: settings are read without it.

Shapes: B batch, T tokens of a block, M = B * T rows, V vocabulary, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kdnas.registry import Section
from kdnas.tasks import TASKS, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnas.nn.rows import Batch, Rows


class NoViews(Section):
    """Text is not varied."""


@TASKS.register
class LanguageModelling(Task):
    """Blocks of tokens [B, T]; the score is the perplexity of each next token, whose targets are [B, T]."""

    Views = NoViews
    views_in_words = ""
    split_in_words = "drawn as one stretch"

    def split(self, targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted places (kept, carved) of blocks: those carved follow each other, as a stretch of text does.

        Blocks that were drawn one by one would be parts of documents that are trained on.
        """
        count = round(share * len(targets))
        first = int(np.random.default_rng(seed).integers(0, len(targets) - count + 1))
        places = np.arange(len(targets))
        return np.delete(places, slice(first, first + count)), places[first : first + count]

    def draw(self, targets: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Return the sorted places of a `share` in (0, 1] of the blocks, at least one, from all of the text."""
        count = max(1, round(share * len(targets)))
        return np.sort(np.random.default_rng(seed).permutation(len(targets))[:count])

    def plain(self, batch: Batch) -> Batch:
        """Return the tokens as int64."""
        from kdnas.nn.rows import Batch

        (tokens,) = batch.inputs
        return Batch((tokens.long(),), batch.targets, batch.samples)

    def view(
        self,
        batch: Batch,
        views: NoViews,
        data: Any,
        *,
        seed: int,
        number: int,
        samples: np.ndarray,
        count: int,
        others: Callable[[np.ndarray], Batch],
    ) -> Batch:
        """Return the blocks as they are: every view is the same."""
        return self.plain(batch)

    def entrance(self, network: nn.Module, data: Any, size: int | None = None) -> nn.Module:
        """Return `network` behind an entrance that cuts blocks into pieces of `size` tokens, read for themselves."""
        from kdnas.nn.pieces import InPieces

        return InPieces(network, None if size is None or size >= self.spec.size else size)

    def tally(self, rows: Rows) -> Tensor:
        """Return (nats of all tokens, how many there are), float64."""
        import torch
        from torch.nn import functional

        nats = functional.cross_entropy(rows.logits.float(), rows.targets, reduction="none")
        weights = torch.ones_like(nats) if rows.weights is None else rows.weights
        return torch.stack([(nats * weights).double().sum(), weights.double().sum()])

    def score(self, tally: Tensor) -> float:
        """Return the perplexity of a token, base e."""
        return math.exp(min(float(tally[0]) / float(tally[1]), 700.0))

    def worst(self, targets: np.ndarray) -> float:
        """Return the perplexity of the unigram model: the token frequencies of `targets`."""
        counts = np.bincount(np.asarray(targets).ravel())
        shares = counts[counts > 0] / counts.sum()
        return math.exp(float(-(shares * np.log(shares)).sum()))
