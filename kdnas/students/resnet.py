"""Residual networks with elastic depth, width, bottleneck and shortcut (He et al., CVPR 2016)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from kdnas.core.arch import Scalar
from kdnas.core.operator import Operator
from kdnas.nn import blocks
from kdnas.nn.blocks import ResidualPlan
from kdnas.nn.counting import residual_block
from kdnas.students import STUDENTS
from kdnas.students._elastic import ElasticFamily
from kdnas.students._settings import Setting, one_of
from kdnas.students._staged import Stage


def _is_bottleneck(value: Scalar) -> bool:
    return value == "plain" or (type(value) in (int, float) and 0 < float(value) <= 4)


@STUDENTS.register
class ResNet(ElasticFamily):
    """Residual networks: per stage depth (0 removes it), width, stride, bottleneck and skip.

    `stage<i>.bottleneck` is "plain" (two 3x3 convolutions) or a ratio (1x1 -> 3x3 -> 1x1, the middle being that share
    of the width, at least one channel). `stage<i>.skip` is "identity" (no parameters anywhere: where the shape changes
    the input is subsampled and its channels zero-padded or cropped), "projection" (1x1 convolution and batch norm where
    the shape changes, identity elsewhere) or "none". A stage strides in its first block, by
    `stage<i>.stride`: 1 in the first stage and 2 in later ones unless stated. The stem strides by `stem_stride`, 1
    unless stated.
    """

    name = "resnet"
    extras: ClassVar[Mapping[str, Setting]] = {
        "bottleneck": Setting(_is_bottleneck, "plain, or a ratio above 0 and up to 4"),
        "skip": one_of("identity", "projection", "none"),
    }
    block = blocks.ResidualBlock
    exported = (
        blocks.ResidualPlan,
        blocks.StudentPlan,
        blocks.ConvNorm,
        blocks.IdentityShortcut,
        blocks.ResidualBlock,
        blocks.Student,
    )

    @staticmethod
    def blocks(in_channels: int, stage: Stage) -> tuple[ResidualPlan, ...]:
        """Return the blocks of `stage`; only the first one can change the shape."""
        bottleneck, skip = stage.extras
        middle = _middle(stage.width, bottleneck)
        elsewhere = "identity" if skip == "projection" else skip
        changes = in_channels != stage.width or stage.stride != 1
        first = ResidualPlan(in_channels, stage.width, middle, stage.stride, skip if changes else elsewhere)
        return first, *[ResidualPlan(stage.width, stage.width, middle, 1, elsewhere)] * (stage.depth - 1)

    @staticmethod
    def simplify(in_channels: int, stage: Stage) -> tuple[Any, ...]:
        """Return the ratio that the middle width really is, and "identity" for a projection that projects nothing."""
        bottleneck, skip = stage.extras
        if bottleneck != "plain":
            bottleneck = _middle(stage.width, bottleneck) / stage.width
        if skip == "projection" and in_channels == stage.width and stage.stride == 1:
            skip = "identity"
        return bottleneck, skip

    axes: ClassVar[Mapping[str, tuple[str, str | None]]] = {
        "first": ("inner", "in"),
        "second": ("out", "inner"),
        "reduce": ("narrow", "in"),
        "spatial": ("middle", "narrow"),
        "restore": ("out", "middle"),
        "shortcut": ("out", "in"),
    }

    @staticmethod
    def parts(plan: Any) -> tuple[str, ...]:
        """Return the part that each convolution of the branch plays."""
        return ("reduce", "spatial", "restore") if plan.middle else ("first", "second")

    @staticmethod
    def shortcut(plan: Any) -> Literal["identity", "projection", "none"]:
        """Return the shortcut around the branch."""
        return plan.skip

    @staticmethod
    def block_operators(plan: Any, height: int, width: int) -> tuple[Operator, ...]:
        """Return the operators of one block on an input of `height` x `width` pixels."""
        return residual_block(plan, height, width)


def _middle(width: int, bottleneck: Any) -> int:
    """Return the middle width of a bottleneck, halves rounded up, or 0 for a plain block."""
    return 0 if bottleneck == "plain" else max(1, math.floor(width * bottleneck + 0.5))
