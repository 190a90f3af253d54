"""Labelled images as plain arrays, and the seeded split that search scores are made on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kdnas.core.task import TaskSpec, image_classification


@dataclass(frozen=True)
class ImageArrays:
    """Decoded images and labels. `images` is uint8 [N, C, H, W], perhaps a read-only memory map; `labels` int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A decoded data set. `fingerprint` is a hash of its content; `test` is only for the final evaluation."""

    name: str
    class_names: tuple[str, ...]
    train: ImageArrays
    test: ImageArrays
    fingerprint: str
    channel_mean: tuple[float, ...]
    """Per channel over the training images, on the 0-255 scale."""
    channel_std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    """What the user should know of how the data was read: what was converted, left out, or occurs twice."""

    @cached_property
    def task(self) -> TaskSpec:
        """The task this data poses."""
        channels, height, width = self.train.images.shape[1:]
        return image_classification((channels, height, width), len(self.class_names))


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (kept, carved) sorted index arrays; `carved` holds `fraction` of every class, drawn by `seed`.

    Every class keeps at least one sample on both sides where it has two or more; its only one is kept.
    """
    rng = np.random.default_rng(seed)
    carved: list[np.ndarray] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = round(fraction * len(members))
        count = min(max(count, min(1, len(members) - 1)), len(members) - 1) if 0 < fraction < 1 else count
        carved.append(members[:count])
    chosen = np.sort(np.concatenate(carved)) if carved else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
