"""Which classes rules allow, and answers with the rules applied.

Shapes: M rows, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

LABEL_RULES = "label_rules"
"""The kind of teacher that gives the allowed classes."""
FORBIDDEN = -1e4
"""The logit of a class that rules forbid."""


def allowed_by(rules: Tensor) -> Tensor:
    """Return which classes the logits [M, K] of rules allow, bool [M, K]."""
    return rules > FORBIDDEN / 2


def ruled(logits: Tensor, rules: Tensor) -> Tensor:
    """Return `logits` [M, K] without what the logits [M, K] of rules forbid."""
    return torch.where(allowed_by(rules), logits, FORBIDDEN)
