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
    """Return a layer's convolution and norm.

    None where they cannot be one, or are not to be: the norm answers by the batch, or somebody listens to a part.
    """
    convolution, norm = layer[0], layer[1]
    if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:  # parametrized ones are of other types
        return None
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (convolution, norm))
    return None if hooked or norm.training or norm.running_mean is None else (convolution, norm)
