"""What tasks share that name classes of images.

torch is imported where it is used: settings are read without it.

Shapes: B batch, K classes, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdnas.tasks import Described
from kdnas.tasks._classification import Classification
from kdnas.tasks._image_settings import Augmentation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnas.nn.rows import Batch


MEAN, DEVIATION = "channel_mean", "channel_std"
"""Statistics of the training images: a number a channel, on the 0-255 scale; deviations are positive."""


class Images(Classification):
    """Images [B, C, H, W], uint8 as they are stored, that are normalised first and varied by `Augmentation`."""

    views_in_words = "random views of the images"

    def plain(self, batch: Batch) -> Batch:
        """Return the images as floats in 0..255."""
        (pixels,) = batch.inputs
        return _of(batch, pixels.float())

    def view(
        self,
        batch: Batch,
        views: Augmentation,
        data: Described,
        *,
        seed: int,
        number: int,
        samples: np.ndarray,
        count: int,
        others: Callable[[np.ndarray], Batch],
    ) -> Batch:
        """Return a random view of the images as floats in 0..255, probabilities [B, K] in the labels' place by mixup.

        Mixup's partner is any of the `count` samples in its own view, so a mixture too depends on no batch.
        """
        import torch
        from torch.nn.functional import one_hot

        from kdnas.tasks._draws import Draws
        from kdnas.tasks._image_views import augment, mix, mixup_shares

        def varied(batch: Batch) -> Batch:
            (pixels,), fill = batch.inputs, data.statistics[MEAN]
            return _of(batch, augment(pixels, Draws(batch.samples, seed, number), views, fill))

        viewed = varied(batch)
        if not self.mixes(views):
            return viewed
        draws = Draws(torch.from_numpy(samples), seed, number)
        shares = mixup_shares(draws, views.mixup).to(viewed.targets.device)
        other = varied(others(draws.below("mixup-partner", count).numpy()))
        labels = [one_hot(each.targets, self.spec.outputs).float() for each in (viewed, other)]
        return _of(viewed, mix(viewed.inputs[0], other.inputs[0], shares), mix(labels[0], labels[1], shares))

    def mixes(self, views: Augmentation | None) -> bool:
        """Return whether images are mixed."""
        return views is not None and views.mixup > 0

    def check_statistics(self, statistics: Mapping[str, Sequence[float]]) -> None:
        """Raise ValueError where there is not one mean and one positive deviation for each channel."""
        means, deviations, channels = statistics.get(MEAN, ()), statistics.get(DEVIATION, ()), self.spec.image_shape[0]
        if not len(means) == len(deviations) == channels:
            raise ValueError(f"{MEAN} and {DEVIATION} need one value for each of the {channels} channels")
        if not all(value > 0 for value in deviations):
            raise ValueError(f"{DEVIATION} needs values above 0")

    def entrance(self, network: nn.Module, data: Described, size: int | None = None) -> nn.Module:
        """Return `network`, which takes normalised images, behind the data's normalisation.

        With a `size` in pixels images are resized to that height first, their width in proportion.
        """
        pixels = None if size is None else self.spec.at(size).image_size
        return normalised(network, data.statistics[MEAN], data.statistics[DEVIATION], pixels)


def normalised(
    network: nn.Module, mean: Sequence[float], std: Sequence[float], size: tuple[int, int] | None = None
) -> nn.Module:
    """Return `network` behind the normalisation by `mean` and `std`: of the data, or those that a teacher expects.

    With a `size`, height and width in pixels, images are resized to it first.
    """
    from kdnas.nn.normalise import Normalised

    return Normalised(network, mean, std, size)


def _of(batch: Batch, pixels: Tensor, labels: Tensor | None = None) -> Batch:
    """Return `batch` with other pixels, and other labels where given."""
    from kdnas.nn.rows import Batch

    return Batch((pixels,), batch.targets if labels is None else labels, batch.samples)
