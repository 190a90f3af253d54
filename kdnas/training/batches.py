"""Batches of samples: kept on the device where they fit, else streamed from the memory map, with equal results.

Shapes: B batch, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdnas.core.data import Array, Data
from kdnas.core.seeds import derive_seed
from kdnas.machine import free_memory_bytes
from kdnas.nn.rows import Batch
from kdnas.tasks import task_of

_CHUNK_BYTES = 64 << 20
_MEMORY_ASSUMED = 2 << 30
"""Bytes, on a system that does not report what is free."""
_BUCKET = 32
"""Samples of like length that stay together."""
_SORTED_TOGETHER = 64
"""Buckets that are sorted by length at a time: more would make the batches of all epochs alike."""


class Batches:
    """Some samples of a data set, batch by batch on `device`.

    Args:
        data: The data set, whose arrays may be memory maps.
        indices: int64 [N], which samples; their order is that of `ordered`.
        device: Where batches are made.
        split: Which part of the data `indices` are places in.
        memory_limit_bytes: Inputs are kept on the device where they need no more than this, else they are read from the
            arrays batch by batch. None: half of the memory available there.
    """

    def __init__(
        self,
        data: Data,
        indices: np.ndarray,
        *,
        device: torch.device,
        split: Literal["train", "test"] = "train",
        memory_limit_bytes: int | None = None,
    ):
        self.data = data
        self.split = split
        self.task = task_of(data.task)
        self.indices = np.asarray(indices, dtype=np.int64)
        self.device = device
        source = data.train if split == "train" else data.test
        self._arrays = [source.inputs[taken.name] for taken in data.task.inputs]
        self._samples = torch.tensor(self.indices, device=device)
        targets = np.asarray(source.targets[self.indices])
        kind = np.float32 if np.issubdtype(targets.dtype, np.floating) else np.int64
        self._targets = torch.from_numpy(targets.astype(kind, copy=False)).to(device)
        limit = available_memory(device) // 2 if memory_limit_bytes is None else memory_limit_bytes
        needed = len(self.indices) * sum(array[:1].nbytes for array in self._arrays)
        self._resident = [self._on_device(array) for array in self._arrays] if needed <= limit else None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def targets(self) -> Tensor:
        """Those of all samples, int64 or numbers in float32, on the device, in the order of `indices`."""
        return self._targets

    @property
    def is_resident(self) -> bool:
        """Whether the inputs are in the device's memory."""
        return self._resident is not None

    def steps(self, batch_size: int) -> int:
        """Return the batches in an epoch (`batches_in`)."""
        return batches_in(len(self), batch_size)

    def epoch(
        self, epoch: int, *, batch_size: int, views: Any = None, seed: int, steps: range | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch, shuffled and varied.

        The order is drawn by (seed, epoch); every draw of the views is a function of (seed, epoch, sample).

        Args:
            epoch: From 0; the number of the view.
            batch_size: B; the last batch may be smaller.
            views: The task's `Views`; None: samples as they are.
            seed: The study's seed.
            steps: Which of the epoch's batches; None: all.
        """
        order = self._order(epoch, seed)
        # Sent whole: on a GPU a copy from the host for each batch would wait for the steps before it.
        places = torch.from_numpy(order).to(self.device)
        for step in range(self.steps(batch_size)) if steps is None else steps:
            part = slice(step * batch_size, (step + 1) * batch_size)
            batch = self._fetch(order[part], places[part])
            if views is None:
                yield self.task.plain(batch)
                continue
            yield self.task.view(
                batch,
                views,
                self.data,
                seed=seed,
                number=epoch,
                samples=self.indices[order[part]],
                count=len(self),
                others=lambda positions: self._fetch(positions, torch.from_numpy(positions).to(self.device)),
            )

    def of(self, samples: Tensor) -> Batch:
        """Return the batch of `samples` [B], places among all samples, as they are; every one has to be among these."""
        places = self._place_of[samples]
        return self.task.plain(self._fetch(places.cpu().numpy(), places))

    @cached_property
    def _place_of(self) -> Tensor:
        """By sample, int64: where it stands in `indices`, on the device."""
        found = torch.full((int(self.indices.max()) + 1,), -1, dtype=torch.int64, device=self.device)
        found[self._samples] = torch.arange(len(self), device=self.device)
        return found

    def samples_of(self, epoch: int, *, seed: int) -> np.ndarray:
        """Return the samples int64 [N] of an epoch in their order, without making any batch."""
        return self.indices[self._order(epoch, seed)]

    def ordered(self, *, batch_size: int) -> Iterator[Batch]:
        """Yield every sample once, in the order of `indices`, as it is."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            yield self.task.plain(self._fetch(np.arange(start, stop), torch.arange(start, stop, device=self.device)))

    @cached_property
    def _lengths(self) -> np.ndarray | None:
        """How much of each sample, or of the longest of a list, is no padding, int64 [N]; None where none is."""
        masks = [a for a, taken in zip(self._arrays, self.data.task.inputs, strict=True) if taken.kind == "mask"]
        if not masks:
            return None
        rows = max(1, _CHUNK_BYTES // max(1, np.asarray(masks[0][:1]).nbytes))
        parts = [self.indices[start : start + rows] for start in range(0, len(self), rows)]
        return np.concatenate(
            [
                np.asarray(masks[0][part]).sum(axis=-1, dtype=np.int64).reshape(len(part), -1).max(axis=1)
                for part in parts
            ]
        )

    def _order(self, epoch: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(derive_seed(seed, "order", epoch))
        order = rng.permutation(len(self))
        return order if self._lengths is None else bucketed(order, self._lengths, rng)

    def grouped(self, *, batch_size: int) -> Iterator[Batch]:
        """Yield every sample once, as it is: those of like length together where samples have padding."""
        if self._lengths is None:
            yield from self.ordered(batch_size=batch_size)
            return
        order = np.argsort(self._lengths, kind="stable")
        for start in range(0, len(self), batch_size):
            part = order[start : start + batch_size]
            yield self.task.plain(self._fetch(part, torch.from_numpy(part).to(self.device)))

    def _fetch(self, positions: np.ndarray, places: Tensor) -> Batch:
        """Return samples as they are stored, on the device; `places` are `positions` there."""
        if self._resident is not None:
            inputs = [kept.index_select(0, places) for kept in self._resident]
        else:
            chosen = self.indices[positions]
            inputs = [torch.from_numpy(np.asarray(array[chosen])).to(self.device) for array in self._arrays]
        return Batch(tuple(inputs), self._targets[places], self._samples[places])

    def _on_device(self, array: Array) -> Tensor:
        """Copy the samples' part of `array` to the device piece by piece, so that nothing is held twice."""
        kind = torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
        kept = torch.empty((len(self), *array.shape[1:]), dtype=kind, device=self.device)
        count = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
        for start in range(0, len(self), count):
            chunk = np.asarray(array[self.indices[start : start + count]])
            kept[start : start + len(chunk)] = torch.from_numpy(chunk)
        return kept


def bucketed(order: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the places `order` int64 [N] with samples of like length, of `lengths` [N], next to each other.

    Stretches of the order are sorted, cut into buckets, and those are shuffled: little of a batch is padding, and
    batches of different epochs still differ.
    """
    stretch = _BUCKET * _SORTED_TOGETHER
    parts = [order[start : start + stretch] for start in range(0, len(order), stretch)]
    ordered = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    buckets = np.array_split(ordered, range(_BUCKET, len(ordered), _BUCKET))
    shuffled = rng.permutation(len(buckets) - 1)  # the last one, which may be smaller, stays the last
    return np.concatenate([*(buckets[index] for index in shuffled), buckets[-1]])


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
