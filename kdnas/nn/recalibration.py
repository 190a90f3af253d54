"""Batch-norm statistics of a subnet, estimated anew: those of a supernet are a mixture over all of its subnets.

Source: Yu and Huang, "Universally slimmable networks and improved training techniques" (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norms(network: nn.Module) -> bool:
    """Whether there is anything in `network` to recalibrate."""
    return any(isinstance(part, _BatchNorm) for part in network.modules())


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> int:
    """Set the running statistics of the batch norms in `network` to their means over `batches`, and return the samples.

    Every batch, inputs [B, ...] as `network` takes them, counts the same. Weights, training flags and settings stay.
    Raises ValueError where there are no samples.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    samples = 0
    try:
        with evaluating(network):
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
    if not samples:
        raise ValueError("no samples to recalibrate on")
    return samples


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within it `network` is in eval mode; afterwards its parts are in the modes that they were in."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
