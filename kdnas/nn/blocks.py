"""Student networks built from a plan: frozen records that give every block's shape.

The records describe a network completely, so pricing, printing and exporting read them instead of
walking modules. This file needs only torch: an exported student is a copy of the classes it uses, with its plan.

Shapes: B batch, K classes, C channels, H and W height and width. A stride s maps H to ceil(H / s),
so any input size works.

Sources: residual blocks, He et al., "Deep residual learning for image recognition" (CVPR 2016); inverted residuals,
Sandler et al., "MobileNetV2" (CVPR 2018); squeeze-and-excite, Hu et al. (CVPR 2018), gated as in Howard et al.,
"Searching for MobileNetV3" (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ResidualPlan:
    """A residual block: two 3x3 convolutions, or 1x1 -> 3x3 -> 1x1 with `middle` channels where `middle` is not 0.

    `skip` is "identity" (no parameters), "projection" (1x1 convolution) or "none".
    """

    in_channels: int
    out_channels: int
    middle: int
    stride: int
    skip: str


@dataclass(frozen=True)
class InvertedPlan:
    """An inverted residual: 1x1 to `hidden` channels, depthwise `kernel`, 1x1 to `out_channels`.

    The first 1x1 is left out where `hidden` equals `in_channels`. `squeezed` is the middle width of the
    squeeze-and-excite gate, 0 for none. `skip` adds the input to the output.
    """

    in_channels: int
    hidden: int
    out_channels: int
    kernel: int
    stride: int
    squeezed: int
    skip: bool


@dataclass(frozen=True)
class StudentPlan:
    """A whole network: 3x3 stem, stages of block plans, a 1x1 head (`head_width` 0: none), pooling, classifier.

    Where `projected` is not 0, a bottleneck takes the head's place that gives maps of so many channels: those that the
    classifier of another network takes (Chen et al., "Reused teacher classifier", CVPR 2022).
    """

    in_channels: int
    stem_width: int
    stem_stride: int
    stages: tuple[tuple[Any, ...], ...]
    head_width: int
    num_classes: int
    projected: int = 0


class ConvNorm(nn.Sequential):
    """Padded convolution (stride 1 keeps the size) without bias, batch norm, and ReLU unless `activate` is false."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
    ):
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if activate else []))


class IdentityShortcut(nn.Module):
    """The input itself, without parameters: subsampled by `stride`, its channels cropped or zero-padded to fit."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.out_channels, self.missing, self.stride = out_channels, max(out_channels - in_channels, 0), stride

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` [B, C, H, W] at the block's output shape."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x[:, : self.out_channels]


class ResidualBlock(nn.Module):
    """ReLU(branch(x) + shortcut(x)) as a `ResidualPlan` describes."""

    def __init__(self, plan: ResidualPlan):
        super().__init__()
        inner, outer, middle, stride = plan.in_channels, plan.out_channels, plan.middle, plan.stride
        if middle:
            self.branch = nn.Sequential(
                ConvNorm(inner, middle, 1),
                ConvNorm(middle, middle, 3, stride),
                ConvNorm(middle, outer, 1, activate=False),
            )
        else:
            self.branch = nn.Sequential(ConvNorm(inner, outer, 3, stride), ConvNorm(outer, outer, 3, activate=False))
        self.shortcut: nn.Module | None = None
        if plan.skip == "projection":
            self.shortcut = ConvNorm(inner, outer, 1, stride, activate=False)
        elif plan.skip == "identity":
            same = inner == outer and stride == 1
            self.shortcut = nn.Identity() if same else IdentityShortcut(inner, outer, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C', H', W'] from `x` [B, C, H, W]."""
        y = self.branch(x)
        if self.shortcut is not None:
            y += self.shortcut(x)
        return self.activation(y)


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate in [0, 1] computed from the channel means."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` [B, C, H, W] scaled."""
        gate = functional.relu(self.reduce(x.mean(dim=(2, 3), keepdim=True)))
        return x * functional.hardsigmoid(self.expand(gate))


class InvertedBlock(nn.Module):
    """x + branch(x), or branch(x) alone, as an `InvertedPlan` describes."""

    def __init__(self, plan: InvertedPlan):
        super().__init__()
        layers: list[nn.Module] = []
        if plan.hidden != plan.in_channels:
            layers.append(ConvNorm(plan.in_channels, plan.hidden, 1))
        layers.append(ConvNorm(plan.hidden, plan.hidden, plan.kernel, plan.stride, groups=plan.hidden))
        if plan.squeezed:
            layers.append(SqueezeExcite(plan.hidden, plan.squeezed))
        layers.append(ConvNorm(plan.hidden, plan.out_channels, 1, activate=False))
        self.branch = nn.Sequential(*layers)
        self.skip = plan.skip

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C', H', W'] from `x` [B, C, H, W]."""
        y = self.branch(x)
        if self.skip:
            y += x
        return y


class Student(nn.Module):
    """The network of a plan. `block` is the class that every block record of `plan.stages` is handed to.

    Each entry of `stages`, of which the last may be the projection, gives a feature map [B, C, H, W]; the input of
    `classifier` is the embedding.
    """

    def __init__(self, plan: StudentPlan, block: Callable[[Any], nn.Module]):
        super().__init__()
        self.stem = ConvNorm(plan.in_channels, plan.stem_width, 3, plan.stem_stride)
        self.stages = nn.ModuleList(nn.Sequential(*(block(record) for record in stage)) for stage in plan.stages)
        width = plan.stages[-1][-1].out_channels
        if plan.projected:
            middle = max(1, plan.projected // 2)
            layers = ConvNorm(width, middle, 1), ConvNorm(middle, middle, 3), ConvNorm(middle, plan.projected, 1)
            self.stages.append(nn.Sequential(*layers))
            width = plan.projected
        self.head = ConvNorm(width, plan.head_width, 1) if plan.head_width else nn.Identity()
        self.classifier = nn.Linear(plan.head_width or width, plan.num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] from normalised images `x` [B, C, H, W]."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.classifier(self.head(x).mean(dim=(2, 3)))


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Draw convolutions by Kaiming's rule over fan-out; norms keep torch's scale 1, at the end of residual blocks, too.

    Starting those at 0, so that a block begins as its shortcut (Goyal et al., 2017), is for long trainings with large
    batches: brief ones never make up for it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
