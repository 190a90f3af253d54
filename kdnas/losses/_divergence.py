"""Rows of probabilities, in logarithms: softened, standardised, taken apart by their target, and their divergences.

Shapes: M rows, V outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs

Temperature = Annotated[float, Field(gt=0.0, le=100.0)]
"""What logits are divided by."""
_LEAST = -1e4
"""Logarithm of a probability that is 0: an infinite one has no gradient where it is mixed."""


def softened(outputs: Outputs, temperature: float) -> Tensor:
    """Return the log probabilities [M, V] of logits divided by `temperature`, all of them finite."""
    return F.log_softmax(outputs.logits / temperature, dim=1).clamp_min(_LEAST)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) [M] of finite log probabilities [M, V]."""
    return (p.exp() * (p - q)).sum(dim=1)


def mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """Return the log probabilities of share * p + (1 - share) * q, for a share in (0, 1)."""
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))


_NO_SPREAD = 1e-7
"""Added to the deviation of logits that are standardised, as their authors do."""


def standardised(logits: Tensor) -> Tensor:
    """Return logits [M, V], each row less its mean and over its deviation (Sun et al., CVPR 2024)."""
    spread = logits.std(dim=1, keepdim=True, correction=1) + _NO_SPREAD
    return (logits - logits.mean(dim=1, keepdim=True)) / spread


def over_targets(rows: Rows, of_row: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean over the rows of what `of_row` gives [M] for their targets int64 [M].

    Mixed targets [M, V] have two classes: it is the expectation over them, by their probabilities.
    """
    if rows.targets.ndim == 1:
        return rows.mean(of_row(rows.targets))
    shares, classes = rows.targets.float().topk(2, dim=1)
    shares = shares / shares.sum(dim=1, keepdim=True)
    return rows.mean(shares[:, 0] * of_row(classes[:, 0]) + shares[:, 1] * of_row(classes[:, 1]))


def others(logits: Tensor, target: Tensor) -> Tensor:
    """Return the logits [M, V - 1] of all outputs but each row's `target` int64 [M]."""
    positions = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, positions + (positions >= target[:, None]))
