"""The exponential moving average of a student's weights: what is scored and kept in place of the weights themselves.

After step t (from 1) the average moves by 1 - min(decay, (1 + t) / (10 + t)) of the way to the weights (Polyak and
Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control and Optimization 1992; the warm-up is
TensorFlow's), so that a brief training does not keep its beginning. Batch-norm statistics are averaged alike; counters
are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of `network`'s weights, begun at what they are now; `module` holds it, as a copy of the network.

    Make it before anything is hooked into the network; the network's tensors must stay the same ones.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.module = copy.deepcopy(network).requires_grad_(False).eval()
        self._decay = decay
        self._network = network
        theirs, ours = _tensors(network), _tensors(self.module)
        averaged = [tensor.is_floating_point() for tensor in theirs]
        self._weights = [tensor for tensor, whether in zip(theirs, averaged, strict=True) if whether]
        self._averages = [tensor for tensor, whether in zip(ours, averaged, strict=True) if whether]
        self._counters = [
            (tensor, mine) for tensor, mine, whether in zip(theirs, ours, averaged, strict=True) if not whether
        ]

    @torch.no_grad()
    def begin(self) -> None:
        """Begin anew at the weights as they are."""
        for mine, tensor in zip(_tensors(self.module), _tensors(self._network), strict=True):
            mine.copy_(tensor)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move to the weights as they are after `step` steps, counted from 1. Nothing waits for the device."""
        share = 1.0 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, share)
        for tensor, mine in self._counters:
            mine.copy_(tensor)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the network hold the average until the context ends, and its own weights again afterwards."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Give the network the average, and `module` the network's weights."""
        for mine, tensor in zip(_tensors(self.module), _tensors(self._network), strict=True):
            kept = tensor.clone()
            tensor.copy_(mine)
            mine.copy_(kept)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return parameters and buffers once each, shared ones too."""
    return [*(parameter.detach() for parameter in module.parameters()), *module.buffers()]
