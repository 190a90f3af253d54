"""Random boxes of images: what a random resized crop shows, and what random erasing hides.

Crops: Szegedy et al., "Going deeper with convolutions" (CVPR 2015), in torchvision's form (`RandomResizedCrop`).
Erasing: Zhong et al., "Random erasing data augmentation" (AAAI 2020).

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kdnas.training.draws import Draws
from kdnas.training.recipe import RandomErasing, RandomResizedCrop

_TRIES = 10
_WEIGHTS = 1 << 22
"""So many weights of a resizing are in memory at once."""
_ONE = 1 << 14
"""Weights are whole multiples of 1 / _ONE: their sums over bytes stay below 2**24, which float32 holds exactly."""


class Boxes(NamedTuple):
    """A box a sample, int64 [B] each, and whether one of the tries fitted, bool [B]."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    found: Tensor


def random_boxes(
    draws: Draws, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], stream: str
) -> Boxes:
    """Return boxes inside images of `size` (H, W), the first of ten tries that fits.

    Their area is uniform in `scale`, as a share of the image's, their aspect (width / height) log-uniform in `ratio`.
    """
    full_height, full_width = size
    height = torch.zeros_like(draws.samples)
    width = torch.zeros_like(draws.samples)
    found = torch.zeros_like(draws.samples, dtype=torch.bool)
    for index in range(_TRIES):
        area = draws.uniform(f"{stream}-area-{index}", *scale) * (full_height * full_width)
        aspect = draws.uniform(f"{stream}-aspect-{index}", *map(math.log, ratio)).exp()
        wide, tall = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        fits = (wide > 0) & (wide <= full_width) & (tall > 0) & (tall <= full_height) & ~found
        height, width, found = torch.where(fits, tall, height), torch.where(fits, wide, width), found | fits
    top = (draws.uniform(f"{stream}-top") * (full_height - height + 1)).long()
    left = (draws.uniform(f"{stream}-left") * (full_width - width + 1)).long()
    return Boxes(top, left, height, width, found)


def random_resized_crop(images: Tensor, draws: Draws, crop: RandomResizedCrop) -> Tensor:
    """Return uint8 [B, C, H, W]: a random box of each image, resized to the image's size, bilinearly with antialiasing.

    Where no try fits, the box is the largest central one of an allowed aspect.
    """
    batch, _, height, width = images.shape
    boxes = random_boxes(draws, (height, width), crop.scale, crop.ratio, "resized-crop")
    aspect = min(max(width / height, crop.ratio[0]), crop.ratio[1])
    tall, wide = min(height, round(width / aspect)), min(width, round(height * aspect))
    top = torch.where(boxes.found, boxes.top, (height - tall) // 2)
    left = torch.where(boxes.found, boxes.left, (width - wide) // 2)
    heights, widths = torch.where(boxes.found, boxes.height, tall), torch.where(boxes.found, boxes.width, wide)
    some = max(1, _WEIGHTS // max(height, width) ** 2)
    parts = [
        _resized(images[part], _resizing(top[part], heights[part], height), _resizing(left[part], widths[part], width))
        for part in (slice(start, start + some) for start in range(0, batch, some))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _resized(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return uint8 [B, C, H, W]: the images resized by the weights `rows` [B, H, H] and `columns` [B, W, W]."""
    batch, channels, height, width = images.shape
    values = images.reshape(batch, channels * height, width).float()
    values = torch.bmm(values, columns.transpose(1, 2)).add_(_ONE // 2).div_(_ONE).floor_()
    values = values.view(batch, channels, height, width).transpose(1, 2).reshape(batch, height, channels * width)
    values = torch.bmm(rows, values).add_(_ONE // 2).div_(_ONE).floor_()
    return values.view(batch, height, channels, width).transpose(1, 2).clamp_(0, 255).to(torch.uint8).contiguous()


def _resizing(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return float32 [B, size, size]: the weights of pixels (last) in outputs when [start, start + length) is resized.

    The triangle filter of Pillow's and torch's antialiased bilinear resizing, in multiples of 1 / _ONE.
    """
    places = torch.arange(size, device=start.device, dtype=torch.float64)
    scale = length.double()[:, None, None] / size
    support = scale.clamp(min=1.0)
    first = start.double()[:, None, None]
    centre = first + (places[:, None] + 0.5) * scale
    weights = (1.0 - (places + 0.5 - centre).abs() / support).clamp_(min=0.0)
    weights = weights * ((places >= first) & (places < first + length[:, None, None]))
    return (weights * (_ONE / weights.sum(2, keepdim=True))).round().float()


def random_erasing(images: Tensor, draws: Draws, erasing: RandomErasing, colour: Tensor) -> Tensor:
    """Return uint8 [B, C, H, W] with a random box of some of the images filled with `colour` uint8 [1, C, 1, 1]."""
    height, width = images.shape[2:]
    boxes = random_boxes(draws, (height, width), erasing.scale, erasing.ratio, "erasing")
    chosen = boxes.found & (draws.uniform("erasing") < erasing.probability)
    row = torch.arange(height, device=images.device) - boxes.top[:, None]
    column = torch.arange(width, device=images.device) - boxes.left[:, None]
    rows = (row >= 0) & (row < boxes.height[:, None]) & chosen[:, None]
    columns = (column >= 0) & (column < boxes.width[:, None])
    hidden = (rows[:, None, :, None] & columns[:, None, None, :]).to(torch.uint8)
    return images * (1 - hidden) + colour * hidden
