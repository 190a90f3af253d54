"""Batch-norm statistics of a subnet, estimated anew: those of a supernet are a mixture over all of its subnets.

Source: Yu and Huang, "Universally slimmable networks and improved training techniques" (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Set the running statistics of the batch norms in `network` to their means over `batches`, and return the samples.

    Every batch, inputs [B, ...] as `network` takes them, counts the same. Weights, training flags and settings stay.
    Raises ValueError where there are no samples.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    modes = [(part, part.training) for part in network.modules()]
    momenta = [norm.momentum for norm in norms]
    samples = 0
    network.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of all batches
            norm.train()
        for batch in batches:
            network(*batch)
            samples += len(batch[0])
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes:
            part.training = training
    if not samples:
        raise ValueError("no samples to recalibrate on")
    return samples
