"""Closed-form multiply-accumulates and parameters of the blocks of `kdnas.nn.blocks`, read off their plans.

MACs are those of convolutions and linear layers at batch 1, as fvcore counts these operators: biases, batch norm,
pooling and elementwise work add nothing. Parameters are everything trainable.

H and W are an input's height and width; a stride s maps H to ceil(H / s).
"""

from __future__ import annotations

from typing import NamedTuple

from kdnas.nn.blocks import InvertedPlan, ResidualPlan


class Count(NamedTuple):
    """MACs, parameters, and the height and width that come out."""

    macs: int
    params: int
    height: int
    width: int


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, h: int, w: int) -> Count:
    """Return the count of a `ConvNorm` on an input of `h` x `w` pixels."""
    weights = in_channels // groups * out_channels * kernel * kernel
    h, w = -(-h // stride), -(-w // stride)
    return Count(weights * h * w, weights + 2 * out_channels, h, w)


def residual_block(plan: ResidualPlan, h: int, w: int) -> Count:
    """Return the count of a `ResidualBlock` on an input of `h` x `w` pixels."""
    inner, outer, middle, stride = plan.in_channels, plan.out_channels, plan.middle, plan.stride
    if middle:
        branch = [(inner, middle, 1, 1, 1), (middle, middle, 3, stride, 1), (middle, outer, 1, 1, 1)]
    else:
        branch = [(inner, outer, 3, stride, 1), (outer, outer, 3, 1, 1)]
    count = chain(branch, h, w)
    if plan.skip == "projection":
        shortcut = conv_norm(inner, outer, 1, stride, 1, h, w)
        return Count(count.macs + shortcut.macs, count.params + shortcut.params, count.height, count.width)
    return count


def inverted_block(plan: InvertedPlan, h: int, w: int) -> Count:
    """Return the count of an `InvertedBlock` on an input of `h` x `w` pixels."""
    depthwise = (plan.hidden, plan.hidden, plan.kernel, plan.stride, plan.hidden)
    layers = [depthwise, (plan.hidden, plan.out_channels, 1, 1, 1)]
    if plan.hidden != plan.in_channels:
        layers.insert(0, (plan.in_channels, plan.hidden, 1, 1, 1))
    count = chain(layers, h, w)
    gate = 2 * plan.hidden * plan.squeezed
    biases = plan.squeezed + plan.hidden if plan.squeezed else 0
    return Count(count.macs + gate, count.params + gate + biases, count.height, count.width)


def chain(layers: list[tuple[int, int, int, int, int]], h: int, w: int) -> Count:
    """Return the count of `ConvNorm` layers in a row, each (in_channels, out_channels, kernel, stride, groups)."""
    macs = params = 0
    for layer in layers:
        count = conv_norm(*layer, h, w)
        macs, params, h, w = macs + count.macs, params + count.params, count.height, count.width
    return Count(macs, params, h, w)
