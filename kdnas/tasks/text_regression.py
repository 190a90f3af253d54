"""Texts, or pairs of texts, and the one number of each, such as how alike two sentences are.

torch is imported where it is used: settings are read without it.

Shapes: B batch, T tokens, M rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kdnas.core.scores import scores_of_values
from kdnas.tasks import TASKS
from kdnas.tasks._texts import TextsOfKeptRows

if TYPE_CHECKING:
    from torch import Tensor

    from kdnas.nn.rows import Rows


@TASKS.register
class TextRegression(TextsOfKeptRows):
    """Texts as tokens [B, T] with a mask [B, T], of pairs also the segments [B, T]; the score is a correlation.

    Targets are numbers, float32 [B], and networks answer with one, [B, 1].
    """

    def tally(self, rows: Rows) -> Tensor:
        """Return [2 * M]: of each row the number predicted and the true one."""
        import torch

        return torch.stack([rows.logits[:, 0].double(), rows.targets.double()], dim=1).flatten()

    def scores(self, tally: Tensor) -> Mapping[str, float]:
        """Return Spearman's and Pearson's correlation."""
        return scores_of_values(*tally.view(-1, 2).numpy().T)

    def worst(self, targets: np.ndarray) -> float:
        """Return the correlation with an answer that never changes."""
        return 0.0
