"""Arithmetic that is compared: float32 as it stands, whatever shortcuts a device takes otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
