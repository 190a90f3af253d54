"""Answers that are compared: computed in float32 as it stands, whatever shortcuts a device takes, and up to rounding.

Shapes: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

ROUNDING = 1e-3
"""Of `apart`: deep float32 networks stay far below, whatever kernel computes them and whatever a batch holds."""
_OUTLYING = 20.0
"""What lies beyond so many times the median counts only as being there: some networks mask classes with -1e9."""


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Within it, CUDA devices multiply float32 as float32 (TF32 keeps three digits), and torch's random state is kept.

    On a CPU only the random state matters.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    matmul, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with torch.random.fork_rng(devices=devices):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolutions


def apart(some: Tensor, others: Tensor) -> float:
    """Return by which share of their size two answers [B, K] differ where they do most; infinite for other shapes."""
    if some.shape != others.shape:
        return float("inf")
    bound = _OUTLYING * float(others.abs().median()) or float("inf")
    some, others = some.clamp(-bound, bound), others.clamp(-bound, bound)
    return float((some - others).abs().max()) / max(float(others.abs().max()), 1e-12)
