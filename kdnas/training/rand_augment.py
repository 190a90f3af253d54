"""RandAugment: some operations a view, drawn from fourteen, all of one magnitude (Cubuk et al., NeurIPS 2020).

The operations and what a magnitude of 0 to 30 means are torchvision's (`RandAugment`); directions are drawn. Pixels
from outside the image take the fill colour.

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdnas.training import colours
from kdnas.training.draws import Draws
from kdnas.training.recipe import RandAugment

_LARGEST = 30.0
_SHIFT = 150.0 / 331.0
"""The longest shift, as a share of the side."""
_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_BLENDS = {
    "brightness": colours.brightness,
    "color": colours.saturation,
    "contrast": colours.contrast,
    "sharpness": colours.sharpness,
}
_LEVELS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[float], float]]] = {
    "posterize": (colours.posterize, lambda share: 8 - round(4 * share)),
    "solarize": (colours.solarize, lambda share: 255.0 * (1.0 - share)),
    "autocontrast": (colours.autocontrast, lambda share: 0.0),
    "equalize": (colours.equalize, lambda share: 0.0),
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
    """Return the images whose pixels are the nearest ones of where `maps` say that they come from."""
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
