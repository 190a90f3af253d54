"""Random views of images, batched on the device.

A view is a function of (seed, view, sample) alone (`kdnas.training.draws`): all trials of a study see the same views.

Pixels outside the image and under the cutout square take the channel mean `fill`, the usual zero after normalisation,
rounded to a whole grey level: images are bytes until the last step.

Milliseconds an image on one core of an AMD EPYC, beside some 1 ms for a training step of a small student at 32 pixels:

    | pixels | flip, padded crop | resized crop | jitter (with hue) | RandAugment | erasing |
    |--------|-------------------|--------------|-------------------|-------------|---------|
    | 32     | 0.004             | 0.06         | 0.05 (0.11)       | 0.04        | 0.01    |
    | 64     | 0.03              | 0.18         | 0.15 (0.36)       | 0.14        | 0.02    |
    | 224    | 0.16              | 3.5          | 2.2 (4.8)         | 1.5         | 0.19    |

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdnas.training.boxes import random_erasing, random_resized_crop
from kdnas.training.colours import color_jitter
from kdnas.training.draws import Draws, random_uniform
from kdnas.training.rand_augment import rand_augment
from kdnas.training.recipe import Augmentation


def augment(
    images: Tensor, samples: Tensor, *, augmentation: Augmentation, fill: Sequence[float], seed: int, view: int
) -> Tensor:
    """Return the view `view` of every image: float32 [B, C, H, W] in 0..255, after all but mixup.

    In this order: mirrored, resized crop, padded crop, RandAugment, colour jitter, cutout, erasing.

    Args:
        images: uint8 [B, C, H, W].
        samples: int64 [B] on the same device: which sample each image is.
        augmentation: What to apply.
        fill: C channel means, 0..255.
        seed: The study's seed.
        view: Number of the view, the epoch.
    """
    draws = Draws(samples, seed, view)
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
