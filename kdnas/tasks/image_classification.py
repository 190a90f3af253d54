"""Images and the one class that each shows.

torch is imported where it is used: settings are read without it.

Shapes: B batch, K classes, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from kdnas.core.data import stratified_split
from kdnas.tasks import TASKS, Task
from kdnas.tasks._image_settings import Augmentation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnas.nn.rows import Batch, Rows


class ChannelStatistics(Protocol):
    """What states how images are normalised: the data set, a trained student, a training's file."""

    @property
    def channel_mean(self) -> Sequence[float]:
        """Per channel, on the 0-255 scale."""

    @property
    def channel_std(self) -> Sequence[float]:
        """Per channel, on the 0-255 scale; positive."""


@TASKS.register
class ImageClassification(Task):
    """Images [B, C, H, W], uint8 as they are stored; the score is the share of them that are right."""

    Views = Augmentation

    def split(self, targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted places (kept, carved) of samples with these labels [N], every class shared out alike."""
        return stratified_split(targets, share, seed)

    def draw(self, targets: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Return the sorted places of a `share` in (0, 1] of the samples. Every class has a part in it."""
        left, drawn = self.split(targets, share, seed)
        only = left[~np.isin(targets[left], targets[drawn])]
        return np.union1d(drawn, only)

    def plain(self, batch: Batch) -> Batch:
        """Return the images as floats in 0..255."""
        (pixels,) = batch.inputs
        return _of(batch, pixels.float())

    def view(
        self,
        batch: Batch,
        views: Augmentation,
        data: ChannelStatistics,
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
            (pixels,), fill = batch.inputs, data.channel_mean
            return _of(batch, augment(pixels, Draws(batch.samples, seed, number), views, fill))

        viewed = varied(batch)
        if not self.mixes(views):
            return viewed
        draws = Draws(torch.from_numpy(samples), seed, number)
        shares = mixup_shares(draws, views.mixup).to(viewed.targets.device)
        other = varied(others(draws.below("mixup-partner", count).numpy()))
        labels = [one_hot(each.targets, self.spec.outputs).float() for each in (viewed, other)]
        return _of(viewed, mix(viewed.inputs[0], other.inputs[0], shares), mix(labels[0], labels[1], shares))

    def mixes(self, views: Augmentation) -> bool:
        """Return whether images are mixed."""
        return views.mixup > 0

    def entrance(self, network: nn.Module, data: ChannelStatistics, size: int | None = None) -> nn.Module:
        """Return `network`, which takes normalised images, behind the data's normalisation.

        With a `size` in pixels images are resized to that height first, their width in proportion.
        """
        from kdnas.nn.normalise import Normalised

        pixels = None if size is None else self.spec.at(size).image_size
        return Normalised(network, data.channel_mean, data.channel_std, pixels)

    def tally(self, rows: Rows) -> Tensor:
        """Return (how many images are right, how many there are), float64."""
        import torch

        right = (rows.logits.argmax(dim=1) == rows.targets).sum()
        return torch.stack([right, torch.full_like(right, len(rows.targets))]).double()

    def score(self, tally: Tensor) -> float:
        """Return the accuracy, in [0, 1]."""
        return float(tally[0]) / float(tally[1])

    def worst(self, targets: np.ndarray) -> float:
        """Return the accuracy of always answering the largest class."""
        return float(np.bincount(targets).max() / len(targets))


def _of(batch: Batch, pixels: Tensor, labels: Tensor | None = None) -> Batch:
    """Return `batch` with other pixels, and other labels where given."""
    from kdnas.nn.rows import Batch

    return Batch((pixels,), batch.targets if labels is None else labels, batch.samples)
