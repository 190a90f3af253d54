"""Changes of colour, of light and of detail, each of a batch of images by a strength a sample.

The operations are those of Pillow's `ImageEnhance` and `ImageOps`, and of torchvision's transforms; results are rounded
to the nearest byte. Greyscale images have no saturation and no hue, and stay as they are under both.

Shapes: images uint8 [B, C, H, W], strengths float64 [B].
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdnas.training.draws import Draws
from kdnas.training.recipe import ColorJitter


def color_jitter(images: Tensor, draws: Draws, jitter: ColorJitter) -> Tensor:
    """Return the images with random brightness, contrast, saturation and hue, in this order."""
    for name, change in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        if spread := getattr(jitter, name):
            images = change(images, draws.uniform(f"jitter-{name}", max(0.0, 1.0 - spread), 1.0 + spread))
    if jitter.hue:
        images = hue(images, draws.uniform("jitter-hue", -jitter.hue, jitter.hue))
    return images


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Return the images times `factors` >= 0: 0 is black, 1 the image."""
    return _bytes(images * _of_images(factors))


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Return the images blended with their mean grey: 0 is that, 1 the image."""
    grey = _grey(images)
    mean = grey.sum((1, 2, 3), dtype=torch.int64).double() / grey[0].numel()  # whole numbers: any order of summing
    return _blend(images, _of_images(mean), factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Return the images blended with their greyscale: 0 is that, 1 the image."""
    return images if images.shape[1] != 3 else _blend(images, _grey(images).float(), factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Return the images blended with a smoothed copy: 0 is that, 1 the image. The outermost pixels stay as they are."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    whole = images.to(torch.int32)
    inside = whole[:, :, 1:-1, 1:-1]
    around = sum(
        whole[:, :, row : height - 2 + row, column : width - 2 + column] for row in range(3) for column in range(3)
    )
    smooth = whole.clone()
    smooth[:, :, 1:-1, 1:-1] = (around + 4 * inside + 6) // 13
    return _blend(images, smooth.float(), factors)


def hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Return the images with their hue turned by `shifts` in [-0.5, 0.5] of the colour circle."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.float().div(255.0).unbind(1)
    value = images.amax(1).float().div(255.0)
    spread = value - images.amin(1).float().div(255.0)
    safe = torch.where(spread > 0, spread, torch.ones_like(spread))
    turn = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    turn = turn + 6.0 * shifts.float()[:, None, None]
    # Smith's formula without cases ("Color gamut transform pairs", SIGGRAPH 1978): f(n) = v - s max(0, min(k, 4-k, 1)).
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (turn + offset).remainder(6.0)
        channels.append(value - spread * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0))
    return _bytes(torch.stack(channels, 1) * 255.0)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Return the images with only the upper `bits` (whole numbers in 0..8) of each byte."""
    mask = 256 - (1 << (8 - bits.long()))
    return images & _of_images(mask).to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Return the images with every byte inverted that is at or above its image's threshold."""
    return torch.where(images >= _of_images(thresholds), 255 - images, images)


def autocontrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Return the images with each channel stretched to the whole range; there is no strength."""
    low = images.amin((2, 3), keepdim=True).to(torch.int32)
    span = images.amax((2, 3), keepdim=True).to(torch.int32) - low
    stretched = ((images.to(torch.int32) - low) * 255 + span // 2) // span.clamp(min=1)
    return torch.where(span > 0, stretched.to(torch.uint8), images)


def equalize(images: Tensor, strengths: Tensor) -> Tensor:
    """Return the images with the histogram of each channel flattened, as Pillow does; there is no strength."""
    planes = images.flatten(2).flatten(0, 1).long()
    first = torch.arange(len(planes), device=images.device)[:, None] * 256
    histogram = torch.bincount((planes + first).flatten(), minlength=256 * len(planes)).view(-1, 256)
    brightest = histogram.gather(1, planes.amax(1, keepdim=True))
    step = (planes.shape[1] - brightest) // 255
    below = histogram.cumsum(1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(1, planes).view(images.shape).to(torch.uint8)


def _of_images(strengths: Tensor) -> Tensor:
    """Return a number a sample as float32 [B, 1, 1, 1], or as it is where it is whole."""
    return (strengths.float() if strengths.is_floating_point() else strengths)[:, None, None, None]


def _blend(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    return _bytes(other + _of_images(factors) * (images - other))


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp_(0.0, 255.0).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Return the greyscale of the images, int32 [B, 1, H, W]: ITU-R 601-2, in Pillow's whole numbers."""
    if images.shape[1] != 3:
        return images[:, :1].to(torch.int32)
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)[:, None]
