"""Directions of feature vectors: lengths of any size give unit vectors, no length gives none.

A fixed small number in a denominator would make a loss weaker for small features, and a vector of no length would get
a gradient of one over that number. Squares of very large or very small features leave float32's range.

Shapes: B batch, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_NONE = 1e-12
"""Magnitudes up to this are none: what a direction would be divided by could only blow a gradient up."""


def bounded(values: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return `values` over their largest magnitude along `dim`, a constant to gradients; unchanged where that is none.

    Whatever does not depend on a common factor of `values` is the same of the result, gradients included.
    """
    largest = _largest(values, dim)
    return values / torch.where(largest > _NONE, largest, torch.ones_like(largest))


def directions(rows: Tensor) -> Tensor:
    """Return `rows` [..., D] scaled to length 1; a row of no length gives zeros and takes no gradient."""
    units = F.normalize(bounded(rows, dim=-1), dim=-1)
    return torch.where(_largest(rows, -1) > _NONE, units, torch.zeros_like(units))


def _largest(values: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    return values.detach().abs().amax(dim=dim, keepdim=True)
