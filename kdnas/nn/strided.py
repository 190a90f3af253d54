"""Convolutions of 1x1 with strides, whose weights' gradients a CPU computes wrongly where they have few channels.

oneDNN's kernels for them write past their workspace where pixels are channels-last and fewer than 16 channels go in
(oneDNN issue 6035; 3.12 in torch 2.14): gradients are wrong, or the process dies, from images of 48x48 on where it was
seen. A student's narrow shortcuts are such layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHANNELS = 16
"""From so many on the kernels are right."""


@contextlib.contextmanager
def thinned_first(network: nn.Module) -> Iterator[None]:
    """Let such layers of `network` take the pixels that they use before they convolve, until the context ends.

    Results are the same. Layers are patched in place: parameters, buffers and names stay the network's own.
    """
    changed = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.groups == 1
        and layer.padding in ((0, 0), "valid")
        and type(layer).forward is nn.Conv2d.forward
        and "forward" not in vars(layer)
    ]
    for layer in changed:
        layer.forward = MethodType(_convolve, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    # The weight that it has at the moment decides: a supernet lends it the one of a subnet.
    if x.device.type != "cpu" or layer.weight.shape[1] >= _CHANNELS or not torch.is_grad_enabled():
        return nn.Conv2d.forward(layer, x)
    down, across = layer.stride
    return functional.conv2d(x[..., ::down, ::across], layer.weight, layer.bias)
