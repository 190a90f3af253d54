"""Batches of labelled images: kept on the device where they fit, else streamed from the memory map, with equal results.

Shapes: B batch, C channels, H and W height and width, K classes, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdnas.core.data import ImageArrays
from kdnas.core.seeds import derive_seed
from kdnas.machine import free_memory_bytes
from kdnas.training.augment import augment, mix, mixup_shares
from kdnas.training.draws import random_below
from kdnas.training.recipe import Augmentation

_CHUNK_BYTES = 64 << 20
_MEMORY_ASSUMED = 2 << 30
"""Bytes, on a system that does not tell what is free."""


@dataclass(frozen=True)
class Batch:
    """Images float32 [B, C, H, W] in 0..255, perhaps augmented; labels int64 [B], or under mixup probabilities
    float32 [B, K]; samples int64 [B], indices into the arrays. All on the device.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor


class Batches:
    """The samples `indices` of `arrays`, batch by batch on `device`.

    Args:
        arrays: Decoded images, perhaps a memory map, and labels.
        indices: int64 [N], which samples; their order is that of `ordered`.
        num_classes: K, for mixup's probabilities.
        device: Where batches are made.
        memory_limit_bytes: The images are kept on the device where they need no more than this, else they are read from
            `arrays` batch by batch. None: half of the memory available there.
    """

    def __init__(
        self,
        arrays: ImageArrays,
        indices: np.ndarray,
        *,
        num_classes: int,
        device: torch.device,
        memory_limit_bytes: int | None = None,
    ):
        self.indices = np.asarray(indices, dtype=np.int64)
        self.num_classes = num_classes
        self.device = device
        self._arrays = arrays
        self._samples = torch.tensor(self.indices, device=device)
        self._labels = torch.from_numpy(np.asarray(arrays.labels)[self.indices].astype(np.int64)).to(device)
        limit = available_memory(device) // 2 if memory_limit_bytes is None else memory_limit_bytes
        needed = len(self.indices) * int(np.prod(arrays.images.shape[1:]))
        self._images = self._resident() if needed <= limit else None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of an image."""
        return self._arrays.images.shape[1:]

    @property
    def is_resident(self) -> bool:
        """Whether the images are in the device's memory."""
        return self._images is not None

    def steps(self, batch_size: int) -> int:
        """Return the batches in an epoch (`batches_in`)."""
        return batches_in(len(self), batch_size)

    def epoch(
        self,
        epoch: int,
        *,
        batch_size: int,
        augmentation: Augmentation,
        fill: Sequence[float],
        seed: int,
        steps: range | None = None,
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch, shuffled and augmented.

        The order is drawn by (seed, epoch); every draw of the augmentation is a function of (seed, epoch, sample).
        Mixup's partner is any of these samples in its own view of the epoch, so a mixture too depends on no batch.

        Args:
            epoch: From 0; the number of the view.
            batch_size: B; the last batch may be smaller.
            augmentation: What to apply.
            fill: Channel means, 0..255, shown where the image is not.
            seed: The study's seed.
            steps: Which of the epoch's batches; None: all.
        """
        order = self._order(epoch, seed)
        # Sent whole: on a GPU a copy from the host for each batch would wait for the steps before it.
        places = torch.from_numpy(order).to(self.device)
        for step in range(self.steps(batch_size)) if steps is None else steps:
            part = slice(step * batch_size, (step + 1) * batch_size)
            batch = self._view(order[part], places[part], epoch, augmentation, fill, seed)
            if augmentation.mixup:
                samples = torch.from_numpy(self.indices[order[part]])
                shares = mixup_shares(samples, beta=augmentation.mixup, seed=seed, view=epoch).to(self.device)
                partners = random_below(samples, len(self), seed=seed, view=epoch, stream="mixup-partner")
                other = self._view(partners.numpy(), partners.to(self.device), epoch, augmentation, fill, seed)
                labels = mix(self._probabilities(batch.labels), self._probabilities(other.labels), shares)
                batch = Batch(mix(batch.images, other.images, shares), labels, batch.samples)
            yield batch

    def samples_of(self, epoch: int, *, batch_size: int, seed: int, steps: range) -> np.ndarray:
        """Return the samples int64 [M] of some batches of an epoch, in their order, without making any image."""
        return self.indices[self._order(epoch, seed)[steps.start * batch_size : steps.stop * batch_size]]

    def ordered(self, *, batch_size: int) -> Iterator[Batch]:
        """Yield every sample once, in the order of `indices`, as it is."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            images, labels, samples = self._fetch(np.arange(start, stop), torch.arange(start, stop, device=self.device))
            yield Batch(images.float(), labels, samples)

    def _order(self, epoch: int, seed: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(len(self))

    def _view(
        self,
        positions: np.ndarray,
        places: Tensor,
        view: int,
        augmentation: Augmentation,
        fill: Sequence[float],
        seed: int,
    ) -> Batch:
        images, labels, samples = self._fetch(positions, places)
        views = augment(images, samples, augmentation=augmentation, fill=fill, seed=seed, view=view)
        return Batch(views, labels, samples)

    def _probabilities(self, labels: Tensor) -> Tensor:
        return functional.one_hot(labels, self.num_classes).float()

    def _fetch(self, positions: np.ndarray, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (images uint8 [B, C, H, W], labels [B], samples [B]) on the device; `places` are `positions` there."""
        if self._images is not None:
            images = self._images.index_select(0, places)
        else:
            images = torch.from_numpy(np.asarray(self._arrays.images)[self.indices[positions]]).to(self.device)
        return images, self._labels[places], self._samples[places]

    def _resident(self) -> Tensor:
        """Copy the images to the device piece by piece, so that nothing is held twice."""
        source = np.asarray(self._arrays.images)
        images = torch.empty((len(self), *source.shape[1:]), dtype=torch.uint8, device=self.device)
        rows = max(1, _CHUNK_BYTES // max(1, int(np.prod(source.shape[1:]))))
        for start in range(0, len(self), rows):
            chunk = source[self.indices[start : start + rows]]
            images[start : start + len(chunk)] = torch.from_numpy(chunk)
        return images


def batches_in(samples: int, batch_size: int) -> int:
    """Return the batches in an epoch. A last batch of one sample is left out: norm layers cannot train on it."""
    full, rest = divmod(samples, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


def available_memory(device: torch.device) -> int:
    """Return the bytes free for use on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = free_memory_bytes()
    return _MEMORY_ASSUMED if free is None else free
