"""Batch norms folded into the convolutions before them, where a network only answers.

A norm in eval mode is a factor and a summand for each channel, which the convolution's weights and bias can hold: one
walk through memory less for every convolution. Answers agree up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdnas.nn.blocks import ConvNorm


@contextlib.contextmanager
def folded(network: nn.Module) -> Iterator[None]:
    """Let the `ConvNorm` layers of `network`, which is in eval mode, answer without norms until the context ends.

    They get other parts meanwhile: parameters and buffers are the network's own only before and after.
    """
    whole: list[tuple[ConvNorm, nn.Conv2d, nn.BatchNorm2d]] = []
    try:
        for layer in network.modules():
            if type(layer) is ConvNorm and (parts := _foldable(layer)):
                whole.append((layer, *parts))
                layer[0], layer[1] = fuse_conv_bn_eval(*parts), nn.Identity()
        yield
    finally:
        for layer, convolution, norm in whole:
            layer[0], layer[1] = convolution, norm


def _foldable(layer: ConvNorm) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """Return a layer's convolution and norm, None where they cannot be one: the norm answers by the batch."""
    convolution, norm = layer[0], layer[1]
    if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        return None
    return None if norm.training or norm.running_mean is None else (convolution, norm)
