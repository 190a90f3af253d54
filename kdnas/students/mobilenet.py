"""Networks of inverted residuals with elastic depth, width, expansion and kernel (Sandler et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from kdnas.core.operator import Operator
from kdnas.nn import blocks
from kdnas.nn.blocks import InvertedPlan
from kdnas.nn.counting import inverted_block
from kdnas.students import STUDENTS
from kdnas.students._elastic import ElasticFamily
from kdnas.students._settings import Setting, one_of, whole
from kdnas.students._staged import Stage


@STUDENTS.register
class MobileNet(ElasticFamily):
    """Inverted residuals: per stage depth (0 removes it), width, stride, expand, kernel, squeeze_excite, skip.

    `stage<i>.expand` is the hidden width over the block's input width (1: no expansion), `stage<i>.kernel` the side of
    the depthwise convolution; `stage<i>.squeeze_excite` adds a channel gate of a quarter of the hidden width, and
    `stage<i>.skip` is "identity" (the input is added where stride and width allow it) or "none". `head_width` (0: none)
    is the width of a 1x1 convolution before pooling. A stage strides in its first block, by
    `stage<i>.stride`: 1 in the first stage and 2 in later ones unless stated. The stem strides by `stem_stride`, 1
    unless stated.
    """

    name = "mobilenet"
    extras: ClassVar[Mapping[str, Setting]] = {
        "expand": whole(1, 16),
        "kernel": one_of(3, 5, 7),
        "squeeze_excite": one_of(True, False),
        "skip": one_of("identity", "none"),
    }
    with_head = True
    block = blocks.InvertedBlock
    exported = (
        blocks.InvertedPlan,
        blocks.StudentPlan,
        blocks.ConvNorm,
        blocks.SqueezeExcite,
        blocks.InvertedBlock,
        blocks.Student,
    )

    @staticmethod
    def blocks(in_channels: int, stage: Stage) -> tuple[InvertedPlan, ...]:
        """Return the blocks of `stage`; only the first one can change the shape."""
        expand, kernel, squeeze_excite, skip = stage.extras

        def block(channels: int, stride: int) -> InvertedPlan:
            hidden = channels * expand
            squeezed = max(1, hidden // 4) if squeeze_excite else 0
            same = stride == 1 and channels == stage.width
            return InvertedPlan(channels, hidden, stage.width, kernel, stride, squeezed, same and skip == "identity")

        return block(in_channels, stage.stride), *[block(stage.width, 1)] * (stage.depth - 1)

    @staticmethod
    def simplify(in_channels: int, stage: Stage) -> tuple[Any, ...]:
        """Return the extras with skip "none" where no block could skip."""
        expand, kernel, squeeze_excite, skip = stage.extras
        possible = stage.depth > 1 or (stage.stride == 1 and in_channels == stage.width)
        return expand, kernel, squeeze_excite, skip if possible else "none"

    axes: ClassVar[Mapping[str, tuple[str, str | None]]] = {
        "expand": ("hidden", "in"),
        "depthwise": ("hidden", None),
        "gate.reduce": ("squeezed", "hidden"),
        "gate.expand": ("hidden", "squeezed"),
        "project": ("out", "hidden"),
        "unexpanded_depthwise": ("in", None),
        "unexpanded_gate.reduce": ("unexpanded_squeezed", "in"),
        "unexpanded_gate.expand": ("in", "unexpanded_squeezed"),
        "unexpanded_project": ("out", "in"),
    }

    @staticmethod
    def parts(plan: Any) -> tuple[str, ...]:
        """Return the part that each layer of the branch plays; without an expansion it works on other channels."""
        names = ["depthwise", *(["gate"] if plan.squeezed else []), "project"]
        if plan.hidden != plan.in_channels:
            return "expand", *names
        return tuple(f"unexpanded_{name}" for name in names)

    @staticmethod
    def shortcut(plan: Any) -> Literal["identity", "projection", "none"]:
        """Return the shortcut around the branch."""
        return "identity" if plan.skip else "none"

    @staticmethod
    def block_operators(plan: Any, height: int, width: int) -> tuple[Operator, ...]:
        """Return the operators of one block on an input of `height` x `width` pixels."""
        return inverted_block(plan, height, width)
