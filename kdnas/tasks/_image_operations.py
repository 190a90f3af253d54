"""Operations on a batch of images, each by a strength a sample, and those that are drawn: colour jitter, RandAugment.

Colours, light and detail are changed as Pillow's `ImageEnhance` and `ImageOps` and torchvision's transforms do; results
are rounded to the nearest byte. Greyscale images have no saturation and no hue, and stay as they are under both.

RandAugment draws some of fourteen operations, all of one magnitude (Cubuk et al., NeurIPS 2020); the operations and
what a magnitude of 0 to 30 means are torchvision's, directions are drawn.

Shapes: images uint8 [B, C, H, W], strengths float64 [B].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdnas.tasks._draws import Draws
from kdnas.tasks._image_settings import ColorJitter, RandAugment

_LARGEST = 30.0
_SHIFT = 150.0 / 331.0
"""The longest shift, as a share of the side."""


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


_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_BLENDS = {
    "brightness": brightness,
    "color": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
}
_LEVELS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[float], float]]] = {
    "posterize": (posterize, lambda share: 8 - round(4 * share)),
    "solarize": (solarize, lambda share: 255.0 * (1.0 - share)),
    "autocontrast": (autocontrast, lambda share: 0.0),
    "equalize": (equalize, lambda share: 0.0),
}
OPERATIONS = ("identity", *_MOVES, *_BLENDS, *_LEVELS)
"""What is drawn from."""


def rand_augment(images: Tensor, draws: Draws, settings: RandAugment, colour: Tensor) -> Tensor:
    """Return uint8 [B, C, H, W]: each image after `settings.ops` random operations.

    `colour` uint8 [1, C, 1, 1] fills what comes from outside the image.
    """
    share = settings.magnitude / _LARGEST
    for round_ in range(settings.ops):
        chosen = draws.below(f"rand-augment-{round_}", len(OPERATIONS))
        images = apply(images, chosen, draws.sign(f"rand-augment-sign-{round_}"), share, colour)
    return images


def apply(images: Tensor, chosen: Tensor, signs: Tensor, share: float, colour: Tensor) -> Tensor:
    """Return the images after one operation each: `chosen` int64 [B] are places in `OPERATIONS`.

    `share` in [0, 1] is the magnitude, `signs` float64 [B] the directions.
    """
    result = images.clone()
    moved = ((chosen >= 1) & (chosen <= len(_MOVES))).nonzero().flatten()
    if len(moved):
        maps = _maps(chosen[moved], signs[moved] * share, images.shape[2], images.shape[3])
        result[moved] = _moved(images[moved], maps, colour)
    for place, name in enumerate(OPERATIONS):
        rows = (chosen == place).nonzero().flatten() if name in _BLENDS or name in _LEVELS else ()
        if not len(rows):
            continue
        if name in _BLENDS:
            result[rows] = _BLENDS[name](images[rows], 1.0 + 0.9 * share * signs[rows])
        else:
            change, level = _LEVELS[name]
            result[rows] = change(images[rows], torch.full_like(signs[rows], level(share)))
    return result


def _maps(chosen: Tensor, levels: Tensor, height: int, width: int) -> Tensor:
    """Return float64 [B, 2, 3]: where in the image each pixel of the result comes from, (x, y, 1) -> (x, y)."""
    one, none = torch.ones_like(levels), torch.zeros_like(levels)
    angle = torch.deg2rad(30.0 * levels)
    cosine, sine = angle.cos(), angle.sin()
    middle_x, middle_y = width / 2.0, height / 2.0
    kinds = {
        "shear_x": (one, 0.3 * levels, none, none, one, none),
        "shear_y": (one, none, none, 0.3 * levels, one, none),
        "translate_x": (one, none, (_SHIFT * width * levels).trunc(), none, one, none),
        "translate_y": (one, none, none, none, one, (_SHIFT * height * levels).trunc()),
        "rotate": (
            *(cosine, -sine, middle_x - cosine * middle_x + sine * middle_y),
            *(sine, cosine, middle_y - sine * middle_x - cosine * middle_y),
        ),
    }
    stacked = torch.stack([torch.stack(kinds[name], 1) for name in _MOVES])  # [5, B, 6]
    place = (chosen - 1)[None, :, None].expand(1, -1, 6)
    return stacked.gather(0, place)[0].view(-1, 2, 3)


def _moved(images: Tensor, maps: Tensor, colour: Tensor) -> Tensor:
    """Return the images whose pixels are the nearest ones of the source places in `maps`."""
    batch, channels, height, width = images.shape
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = torch.arange(height, device=images.device, dtype=torch.float64) + 0.5
    a, b, c, d, e, f = (value[:, None, None] for value in maps.flatten(1).unbind(1))
    column = (a * x + b * y[:, None] + c).floor().long()
    row = (d * x + e * y[:, None] + f).floor().long()
    inside = ((column >= 0) & (column < width) & (row >= 0) & (row < height))[:, None]
    places = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).view(batch, 1, -1)
    found = images.flatten(2).gather(2, places.expand(-1, channels, -1)).view(images.shape)
    return torch.where(inside, found, colour)


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
