"""Random views of images, batched on the device: crops, mirroring, hidden parts, mixtures, and the order of it all.

A view is a function of (seed, view, sample) alone (`kdnas.tasks._draws`): all trials of a study see the same views.

Pixels outside the image and under the cutout square take the channel mean `fill`, the usual zero after normalisation,
rounded to a whole grey level: images are bytes until the last step.

Milliseconds an image on one core of an AMD EPYC, next to some 1 ms for a training step of a small student at 32 pixels:

    | pixels | flip, padded crop | resized crop | jitter (with hue) | RandAugment | erasing |
    |--------|-------------------|--------------|-------------------|-------------|---------|
    | 32     | 0.004             | 0.06         | 0.05 (0.11)       | 0.04        | 0.01    |
    | 64     | 0.03              | 0.18         | 0.15 (0.36)       | 0.14        | 0.02    |
    | 224    | 0.16              | 3.5          | 2.2 (4.8)         | 1.5         | 0.19    |

Resized crops: Szegedy et al., "Going deeper with convolutions" (CVPR 2015), in torchvision's form. Erasing: Zhong et
al., "Random erasing data augmentation" (AAAI 2020). Mixup: Zhang et al. (ICLR 2018).

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdnas.tasks._draws import Draws
from kdnas.tasks._image_operations import color_jitter, rand_augment
from kdnas.tasks._image_settings import Augmentation, RandomErasing, RandomResizedCrop

_TRIES = 10
_WEIGHTS = 1 << 22
"""So many weights of a resizing are in memory at once."""
_ONE = 1 << 14
"""Weights are whole multiples of 1 / _ONE: their sums over bytes stay below 2**24, which float32 holds exactly."""


def augment(images: Tensor, draws: Draws, augmentation: Augmentation, fill: Sequence[float]) -> Tensor:
    """Return a view of every image: float32 [B, C, H, W] in 0..255, after all but mixup.

    In this order: mirrored, resized crop, padded crop, RandAugment, colour jitter, cutout, erasing.

    Args:
        images: uint8 [B, C, H, W].
        draws: The view's, of samples on the same device.
        augmentation: What to apply.
        fill: C channel means, 0..255.
    """
    if augmentation.flip:
        mirrored = draws.bits("flip") < 0
        # Picking rows from both versions is several times faster on a CPU than torch.where.
        rows = torch.arange(len(images), device=images.device) + mirrored * len(images)
        images = torch.cat([images, images.flip(3)]).index_select(0, rows)
    # Filled in on the device, since a copy from the host would wait for it.
    levels = [int(level) for level in torch.tensor(fill, dtype=torch.float32).round()]
    colour = torch.cat([torch.full((1,), level, dtype=torch.uint8, device=images.device) for level in levels])
    colour = colour[None, :, None, None]
    if augmentation.random_resized_crop is not None:
        images = random_resized_crop(images, draws, augmentation.random_resized_crop)
    if augmentation.crop_padding:
        places = 2 * augmentation.crop_padding + 1
        top, left = draws.below("crop-top", places), draws.below("crop-left", places)
        images = _crop(images, top, left, augmentation.crop_padding, colour)
    if augmentation.rand_augment is not None:
        images = rand_augment(images, draws, augmentation.rand_augment, colour)
    if augmentation.color_jitter is not None:
        images = color_jitter(images, draws, augmentation.color_jitter)
    if augmentation.cutout:
        images = _cutout(images, draws, augmentation.cutout, colour)
    if augmentation.random_erasing is not None:
        images = random_erasing(images, draws, augmentation.random_erasing, colour)
    return images.float()


def _crop(images: Tensor, top: Tensor, left: Tensor, padding: int, colour: Tensor) -> Tensor:
    """Return uint8 [B, C, H, W]: each image in a frame of `padding` pixels, cut out from (top, left)."""
    batch, channels, height, width = images.shape
    tall, wide = height + 2 * padding, width + 2 * padding
    framed = colour.expand(batch, channels, tall, wide).contiguous()
    framed[:, :, padding : padding + height, padding : padding + width] = images
    # Every run of `width` bytes is one row of an overlapping view, and a crop picks B * C * H of them.
    runs = framed.as_strided((framed.numel() - width + 1, width), (1, 1))
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * tall
    row = plane + top[:, None, None] + torch.arange(height, device=images.device)
    starts = row * wide + left[:, None, None]
    return runs.index_select(0, starts.flatten()).view(batch, channels, height, width)


def _cutout(images: Tensor, draws: Draws, side: int, colour: Tensor) -> Tensor:
    """Return the images with a square of `side` pixels around a random pixel filled; it may hang over the border."""
    height, width = images.shape[2:]
    centre_row = draws.below("cutout-row", height)[:, None]
    centre_column = draws.below("cutout-column", width)[:, None]
    row = torch.arange(height, device=images.device) - centre_row + side // 2
    column = torch.arange(width, device=images.device) - centre_column + side // 2
    rows, columns = (row >= 0) & (row < side), (column >= 0) & (column < side)
    cut = (rows[:, None, :, None] & columns[:, None, None, :]).to(torch.uint8)
    return images * (1 - cut) + colour * cut


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


def mixup_shares(draws: Draws, beta: float) -> Tensor:
    """Return how much of itself each sample keeps in its mixture: float32 [B], drawn from Beta(beta, beta).

    The samples are on the CPU; the draw inverts the distribution function exactly.
    """
    from scipy.special import betaincinv  # half a second to import, and rarely needed

    return torch.from_numpy(betaincinv(beta, beta, draws.uniform("mixup-share").numpy())).float()


def mix(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Return `shares` of `first` and the rest of `second`, for images [B, C, H, W] or probabilities [B, K]."""
    return torch.lerp(second, first, shares.view(-1, *[1] * (first.ndim - 1)))
