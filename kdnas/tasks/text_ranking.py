"""Queries with lists of texts, and which candidate of each list is the right one.

A network reads the query and one candidate together and gives one number (a cross-encoder: Nogueira and Cho, "Passage
re-ranking with BERT", 2019). The numbers of a list are its logits: cross entropy, `kd` and every other loss of logits
then compare whole lists, as RocketQAv2's listwise distillation does (Ren et al., EMNLP 2021), and losses of layers and
embeddings compare the pairs.

torch is imported where it is used: settings are read without it.

Shapes: B batch, K candidates of a list, T tokens, M rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kdnas.core.scores import scores_of_ranks
from kdnas.tasks import TASKS
from kdnas.tasks._texts import TextsOfKeptRows

if TYPE_CHECKING:
    from torch import Tensor

    from kdnas.nn.rows import Rows


@TASKS.register
class TextRanking(TextsOfKeptRows):
    """Lists of pairs as tokens, mask and segments [B, K, T]; the score is the share whose right one is first.

    Targets are the places of the right ones, int64 [B].
    """

    views_in_words = "tokens hidden at random, of every candidate others"

    def tally(self, rows: Rows) -> Tensor:
        """Return [2 * M]: of each list how many candidates beat the right one, and how many have its score with it."""
        import torch

        own = rows.logits.gather(1, rows.targets[:, None])
        found = [(rows.logits > own).sum(dim=1), (rows.logits == own).sum(dim=1)]
        return torch.stack(found, dim=1).double().flatten()

    def scores(self, tally: Tensor) -> Mapping[str, float]:
        """Return the share of lists whose right candidate is first, and the mean reciprocal rank."""
        return scores_of_ranks(*tally.view(-1, 2).long().numpy().T)

    def worst(self, targets: np.ndarray) -> float:
        """Return the score of giving every candidate the same number: that of chance."""
        count = self.spec.candidates
        return scores_of_ranks(np.array([0]), np.array([count]))[self.spec.score.name]
