"""Random views of images, batched on the device.

Every draw is a hash of (seed, view, sample, stream) and of nothing else, so that a view does not depend on the order
of the batches, on their size or on the device, and all trials of a study see the same views. The hash is splitmix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), read at a counter.

Pixels outside the image and under the cutout square take the channel mean `fill`, the usual zero after normalisation,
rounded to a whole grey level: images are bytes until the last step.

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdnas.core.seeds import derive_seed
from kdnas.training.recipe import Augmentation

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the 64 bits of `value` as torch's int64 spells them."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(bits: Tensor, count: int) -> Tensor:
    """Return int64 `bits` shifted right by `count` with zeros coming in."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def random_bits(samples: Tensor, *, seed: int, view: int, stream: str) -> Tensor:
    """Return 64 random bits a sample as int64 [B], a pure function of (seed, view, stream, sample).

    Args:
        samples: int64 [B], sample numbers >= 0.
        seed: The study's seed.
        view: Number of the view, the epoch.
        stream: What is drawn: every stream is independent of the others.
    """
    key = derive_seed(seed, "augment", stream, view)
    bits = samples * _signed(_GAMMA) + _signed(key + _GAMMA)  # int64 wraps around
    bits = (bits ^ _shift(bits, 30)) * _signed(_MULTIPLIER_1)
    bits = (bits ^ _shift(bits, 27)) * _signed(_MULTIPLIER_2)
    return bits ^ _shift(bits, 31)


def random_below(samples: Tensor, limit: int, *, seed: int, view: int, stream: str) -> Tensor:
    """Return a random integer in [0, limit) a sample as int64 [B]; `limit` is at most 2**31."""
    return (_shift(random_bits(samples, seed=seed, view=view, stream=stream), 33) * limit) >> 31


def random_uniform(samples: Tensor, *, seed: int, view: int, stream: str) -> Tensor:
    """Return a random number in [0, 1) a sample as float64 [B]."""
    return _shift(random_bits(samples, seed=seed, view=view, stream=stream), 11).double() * 2.0**-53


def augment(
    images: Tensor, samples: Tensor, *, augmentation: Augmentation, fill: Sequence[float], seed: int, view: int
) -> Tensor:
    """Return the view `view` of every image: float32 [B, C, H, W] in 0..255, mirrored, shifted and cut out. No mixup.

    Args:
        images: uint8 [B, C, H, W].
        samples: int64 [B] on the same device: which sample each image is.
        augmentation: What to apply.
        fill: C channel means, 0..255.
        seed: The study's seed.
        view: Number of the view, the epoch.
    """
    if augmentation.flip:
        mirrored = random_bits(samples, seed=seed, view=view, stream="flip") < 0
        # Picking rows from both versions is several times faster on a CPU than torch.where.
        rows = torch.arange(len(images), device=images.device) + mirrored * len(images)
        images = torch.cat([images, images.flip(3)]).index_select(0, rows)
    # Filled in on the device, since a copy from the host would wait for it.
    levels = [int(level) for level in torch.tensor(fill, dtype=torch.float32).round()]
    colour = torch.cat([torch.full((1,), level, dtype=torch.uint8, device=images.device) for level in levels])
    colour = colour[None, :, None, None]
    if augmentation.crop_padding:
        places = 2 * augmentation.crop_padding + 1
        top = random_below(samples, places, seed=seed, view=view, stream="crop-top")
        left = random_below(samples, places, seed=seed, view=view, stream="crop-left")
        images = _crop(images, top, left, augmentation.crop_padding, colour)
    if augmentation.cutout:
        images = _cutout(images, samples, augmentation.cutout, colour, seed=seed, view=view)
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


def _cutout(images: Tensor, samples: Tensor, side: int, colour: Tensor, *, seed: int, view: int) -> Tensor:
    """Return the images with a square of `side` pixels around a random pixel filled; it may hang over the border."""
    height, width = images.shape[2:]
    centre_row = random_below(samples, height, seed=seed, view=view, stream="cutout-row")[:, None]
    centre_column = random_below(samples, width, seed=seed, view=view, stream="cutout-column")[:, None]
    row = torch.arange(height, device=images.device) - centre_row + side // 2
    column = torch.arange(width, device=images.device) - centre_column + side // 2
    rows, columns = (row >= 0) & (row < side), (column >= 0) & (column < side)
    cut = (rows[:, None, :, None] & columns[:, None, None, :]).to(torch.uint8)
    return images * (1 - cut) + colour * cut


def mixup_shares(samples: Tensor, *, beta: float, seed: int, view: int) -> Tensor:
    """Return how much of itself each sample keeps in its mixture: float32 [B], drawn from Beta(beta, beta).

    `samples` are on the CPU; the draw inverts the distribution function exactly (mixup: Zhang et al., ICLR 2018).
    """
    from scipy.special import betaincinv  # half a second to import, and rarely needed

    uniform = random_uniform(samples, seed=seed, view=view, stream="mixup-share")
    return torch.from_numpy(betaincinv(beta, beta, uniform.numpy())).float()


def mix(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Return `shares` of `first` and the rest of `second`, for images [B, C, H, W] or probabilities [B, K]."""
    return torch.lerp(second, first, shares.view(-1, *[1] * (first.ndim - 1)))
