"""The operators of the blocks of `kdnas.nn.blocks`, read off their plans: closed-form prices are sums over them.

h and w are an input's height and width.
"""

from __future__ import annotations

from kdnas.core.operator import Operator
from kdnas.nn.blocks import InvertedPlan, ResidualPlan

Layer = tuple[int, int, int, int, int]
"""A `ConvNorm`: in_channels, out_channels, kernel, stride, groups."""


def residual_block(plan: ResidualPlan, h: int, w: int) -> tuple[Operator, ...]:
    """Return the operators of a `ResidualBlock` on an input of `h` x `w` pixels."""
    inner, outer, middle, stride = plan.in_channels, plan.out_channels, plan.middle, plan.stride
    branch: list[Layer]
    if middle:
        branch = [(inner, middle, 1, 1, 1), (middle, middle, 3, stride, 1), (middle, outer, 1, 1, 1)]
    else:
        branch = [(inner, outer, 3, stride, 1), (outer, outer, 3, 1, 1)]
    operators = chain(branch, h, w)
    if plan.skip == "none":
        return operators
    last = operators[-1]
    if plan.skip == "projection":
        operators += chain([(inner, outer, 1, stride, 1)], h, w)
    elif inner != outer or stride != 1:
        operators += (Operator("shortcut", inner, outer, h, w, stride=stride),)
    return (*operators, Operator("add", outer, outer, last.out_height, last.out_width))


def inverted_block(plan: InvertedPlan, h: int, w: int) -> tuple[Operator, ...]:
    """Return the operators of an `InvertedBlock` on an input of `h` x `w` pixels."""
    hidden, outer = plan.hidden, plan.out_channels
    expand: list[Layer] = [] if hidden == plan.in_channels else [(plan.in_channels, hidden, 1, 1, 1)]
    operators = chain([*expand, (hidden, hidden, plan.kernel, plan.stride, hidden)], h, w)
    h, w = operators[-1].out_height, operators[-1].out_width
    if plan.squeezed:
        operators += (Operator("gate", hidden, plan.squeezed, h, w),)
    operators += chain([(hidden, outer, 1, 1, 1)], h, w)
    return (*operators, Operator("add", outer, outer, h, w)) if plan.skip else operators


def chain(layers: list[Layer], h: int, w: int) -> tuple[Operator, ...]:
    """Return the operators of `ConvNorm` layers in a row."""
    operators = []
    for in_channels, out_channels, kernel, stride, groups in layers:
        operators.append(Operator("conv", in_channels, out_channels, h, w, kernel, stride, groups))
        h, w = operators[-1].out_height, operators[-1].out_width
    return tuple(operators)
