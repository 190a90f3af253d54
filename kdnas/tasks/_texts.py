"""What tasks on texts, or pairs of texts, share: how tokens are given to networks, and varied.

torch is imported where it is used: settings are read without it.

Shapes: B batch, T tokens, K candidates of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from kdnas.registry import Section
from kdnas.tasks import Described, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnas.nn.rows import Batch

_MULTIPLE = 8
"""Batches are so many tokens long, or a multiple: few different shapes, and quick ones."""


class TextViews(Section):
    """How texts are varied at random."""

    token_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the tokens, the first of each text apart, that no network sees: the mask hides them."""


class Texts(Task):
    """Texts as tokens [B, T] with a mask [B, T], of pairs also the segments [B, T]."""

    Views = TextViews
    views_in_words = "tokens hidden at random"

    def plain(self, batch: Batch) -> Batch:
        """Return the inputs as int64, no longer than the longest text of the batch, brought to a multiple of 8.

        Lists keep their form: inputs are [B, T], or [B, K, T] of lists.
        """
        from kdnas.nn.rows import Batch

        mask = batch.inputs[1]
        longest = int(mask.sum(dim=-1).max()) if len(mask) else 0
        length = min(mask.shape[-1], max(1, -(-longest // _MULTIPLE)) * _MULTIPLE)
        return Batch(tuple(taken[..., :length].long() for taken in batch.inputs), batch.targets, batch.samples)

    def view(
        self,
        batch: Batch,
        views: TextViews,
        data: Described,
        *,
        seed: int,
        number: int,
        samples: np.ndarray,
        count: int,
        others: Callable[[np.ndarray], Batch],
    ) -> Batch:
        """Return a random view of the texts, as `plain` returns them."""
        import dataclasses

        import torch

        from kdnas.tasks._draws import Draws

        plain = self.plain(batch)
        if not self.varies(views):
            return plain
        tokens, mask, *segments = plain.inputs
        texts, count = plain.samples, self.spec.candidates
        if count:  # each candidate is a text of its own
            texts = (texts[:, None] * count + torch.arange(count, device=texts.device)).flatten()
        draws = Draws(texts, seed, number)
        kept = [draws.uniform(f"token-{place}") >= views.token_dropout for place in range(1, mask.shape[-1])]
        seen = torch.stack([torch.ones_like(texts, dtype=torch.bool), *kept], dim=1).view_as(mask)
        return dataclasses.replace(plain, inputs=(tokens, mask * seen, *segments))

    def entrance(self, network: nn.Module, data: Described, size: int | None = None) -> nn.Module:
        """Return `network` behind an entrance that cuts texts off after `size` tokens; None: leaves them whole."""
        from kdnas.nn.pieces import Beginnings

        return Beginnings(network, None if size is None or size >= self.spec.size else size)


class TextsOfKeptRows(Texts):
    """Texts whose tally keeps what it is made of row by row: `scores` are known of all samples alone."""

    def together(self, tallies: Sequence[Tensor]) -> Tensor:
        """Return the rows of all batches."""
        import torch

        return torch.cat(list(tallies))

    def score(self, tally: Tensor) -> float:
        """Return the one of `scores` that the study scores by."""
        return self.scores(tally)[self.spec.score.name]
