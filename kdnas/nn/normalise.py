"""Normalisation inside the network, so that everybody else handles raw images.

Shapes: B batch, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `images` [B, C, H, W] at `size`, height and width in pixels, smoothed before they are thinned out."""
    if tuple(images.shape[2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


class Normalised(nn.Module):
    """`network` behind per-channel normalisation: takes raw images [B, C, H, W] as floats in 0..255.

    `mean` and `std` are per channel on the 0-255 scale. They are not part of the state dict, which is `network`'s own.
    With a `size` (height, width) images are resized to it first. A `network` that prepares its inputs itself, as a
    student cut out of a teacher does (`takes_raw`), is given them as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], size: tuple[int, int] | None = None
    ):
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"need one mean and one positive std a channel, got {tuple(mean)} and {tuple(std)}")
        if getattr(network, "takes_raw", False):
            mean, std = [0.0] * len(mean), [1.0] * len(std)
        self.network = network
        self.size = size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of raw `images`."""
        if self.size is not None:
            images = resized(images, self.size)
        return self.network((images - self.mean) / self.std)
