"""What the teacher says of each batch: computed, or read from the cache of the study's shared views."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from kdnas.core.data import ImageData
from kdnas.nn.taps import Output, Outputs, OutputShapes, Taps
from kdnas.teachers import Teacher
from kdnas.training.recipe import Augmentation
from kdnas.training.teacher_cache import TeacherCache, ViewsKey


class Stopwatch:
    """Seconds of work between `start` and `stop`, on the device's own clock, without waiting for the device."""

    def __init__(self, device: torch.device):
        self._on_device = device.type == "cuda"
        self._started = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    def start(self) -> None:
        """Begin a stretch of work."""
        if self._on_device:
            events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            events[0].record()
            self._events.append(events)
        else:
            self._started = time.perf_counter()

    def stop(self) -> None:
        """End the stretch."""
        if self._on_device:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """Return the seconds of the stretches since the last call; waits for the device to finish them."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000.0
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Teaching:
    """The teacher's outputs for the batches of one training, view by view.

        teaching.begin(view); outputs = teaching(images, samples) ...; teaching.end()

    With `cache`, batches whose rows are all there are read from it; for others the teacher is run, and its rows are
    stored when the view ends. `samples` are those of the training. Use inside `tapped`'s context.
    """

    def __init__(
        self,
        tapped: Taps,
        *,
        device: torch.device,
        bfloat16: bool,
        samples: np.ndarray,
        cache: tuple[TeacherCache, ViewsKey] | None,
    ):
        self._stopwatch = Stopwatch(device)
        self._tapped = tapped
        self._device = device
        self._bfloat16 = bfloat16
        self._samples = samples
        self._cache = cache
        self._view = 0
        self._rows: Tensor | None = None
        self._filled: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []

    def begin(self, view: int) -> None:
        """Get ready for the batches of `view`."""
        self._view, self._rows, self._filled, self._seen = view, None, None, []
        if self._cache is None:
            return
        cache, key = self._cache
        found = cache.read(key, view)
        if found is not None:
            rows, filled = found
            # The whole view moves to the device at once: looking rows up there never waits for the host.
            self._rows = torch.from_numpy(np.array(rows)).to(self._device)
            if not filled[self._samples].all():
                self._filled = torch.from_numpy(filled).to(self._device)

    def __call__(self, images: Tensor, samples: Tensor) -> Outputs:
        """Return the teacher's outputs for raw `images` [B, C, H, W] of `samples` [B], without gradients."""
        self._stopwatch.start()
        outputs = self._cached(samples)
        if outputs is None:
            with torch.no_grad(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
                outputs = self._tapped(images)
            if self._cache is not None:
                self._seen.append((samples, _to_rows(outputs, self._cache[1])))
        self._stopwatch.stop()
        return outputs

    def end(self) -> float:
        """Store what the teacher was asked for the cache in this view, and return the teacher's seconds in it."""
        if self._cache is not None and self._seen:
            cache, key = self._cache
            samples, rows = (torch.cat(parts).cpu().numpy() for parts in zip(*self._seen, strict=True))
            cache.write(key, self._view, samples, rows)
        self._rows, self._filled, self._seen = None, None, []
        return self._stopwatch.take()

    def _cached(self, samples: Tensor) -> Outputs | None:
        if self._cache is None or self._rows is None:
            return None
        if self._filled is not None and not bool(self._filled[samples].all()):
            return None
        return _from_rows(self._rows[samples], self._cache[1])


def _to_rows(outputs: Outputs, key: ViewsKey) -> Tensor:
    if not key.embedding:
        return outputs.logits.float()
    assert outputs.embedding is not None
    return torch.cat([outputs.logits.float(), outputs.embedding.float()], dim=1)


def _from_rows(rows: Tensor, key: ViewsKey) -> Outputs:
    if not key.embedding:
        return Outputs(rows)
    return Outputs(rows[:, : key.classes], embedding=rows[:, key.classes :])


def views_key(
    teacher: Teacher,
    shapes: OutputShapes,
    data: ImageData,
    *,
    needs: frozenset[Output],
    augmentation: Augmentation,
    view_seed: int,
    bfloat16: bool,
    device: torch.device,
) -> ViewsKey | None:
    """Return the cache's key for what the losses read, or None where it cannot be cached.

    Stage maps are too large to keep, and mixup makes views of pairs of samples.
    """
    if "stages" in needs or augmentation.mixup > 0:
        return None
    embedding = shapes.embedding if "embedding" in needs else 0
    return ViewsKey(
        teacher=teacher.fingerprint,
        data=data.fingerprint,
        augmentation=augmentation.model_dump_json(),
        view_seed=view_seed,
        precision="bfloat16" if bfloat16 else "float32",
        device=device.type,
        samples=len(data.train),
        classes=shapes.num_classes,
        embedding=embedding,
    )
