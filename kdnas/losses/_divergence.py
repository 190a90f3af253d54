"""Divergences of rows of probabilities, in logarithms.

Shapes: M rows, V outputs.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

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
