"""Normalisation inside the network, so that everybody else handles raw images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """`network` behind per-channel normalisation: takes raw images [B, C, H, W] as floats in 0..255.

    `mean` and `std` are per channel on the 0-255 scale. They are not part of the state dict, which is `network`'s own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"need one mean and one positive std a channel, got {tuple(mean)} and {tuple(std)}")
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of raw `images`."""
        return self.network((images - self.mean) / self.std)
