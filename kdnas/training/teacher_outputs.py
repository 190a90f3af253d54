"""The teacher's outputs for each batch: computed, or read from the cache of the study's shared views.

Shapes: B batch.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdnas.core.answers import coarse_key
from kdnas.losses import LOSSES
from kdnas.nn.rows import Batch
from kdnas.nn.taps import Output, Outputs, OutputShapes, Taps
from kdnas.registry import Section
from kdnas.tasks._draws import Draws
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.loss import needs_of
from kdnas.training.recipe import Distillation, Training
from kdnas.training.teacher_cache import TeacherCache, View, ViewsKey

_PART_SAMPLES = {"cpu": 512, "cuda": 8192}
"""Samples that one claim covers: seconds of work."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_MAP_BYTES = 4
"""Of a number in a stage map."""
_TOO_LARGE: frozenset[Output] = frozenset({"stages", "attention"})
"""Outputs that are not kept."""
_PATIENCE_S = 60.0
"""How long to wait for a living process that holds a claim and does not get on, before its work is done here too."""


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


@dataclass(frozen=True, eq=False)
class Part:
    """Some steps of a view, part `number` of it from 1, and their samples int64 [M]."""

    number: int
    steps: range
    samples: np.ndarray


@dataclass(frozen=True)
class BatchPlan:
    """A training's batches, of which any may be made ahead of its turn."""

    train: Batches
    batch_size: int
    views: Section | None
    seed: int

    @functools.cached_property
    def digest(self) -> str:
        """A hash of what decides which samples stand in which batch: processes that share it divide work alike."""
        return hashlib.sha256(f"{self.batch_size} {self.seed}".encode() + self.train.indices.tobytes()).hexdigest()

    @property
    def by_place(self) -> bool:
        """Whether rows are kept of the samples that are trained on alone, in the order of their places."""
        return self.train.task.spec.rows > 1

    @functools.cached_property
    def _place_of(self) -> np.ndarray:
        """By sample, int64 [N]: which row is its own."""
        found = np.full(len(self.train.data.train), -1, dtype=np.int64)
        found[np.sort(self.train.indices)] = np.arange(len(self.train.indices))
        return found

    def rows_of(self, samples: np.ndarray) -> np.ndarray:
        """Return which rows are those of `samples` int64 [M]."""
        return self._place_of[samples] if self.by_place else samples

    def kept_as(self, view: int) -> int:
        """Return the view that the rows of `view` are kept as: where samples are not varied, all views are one."""
        return view if self.train.task.varies(self.views) else 0

    def parts(self, view: int, samples: int) -> list[Part]:
        """Return the steps of `view` in parts of about so many samples."""
        steps, size = self.train.steps(self.batch_size), max(1, samples // self.batch_size)
        order = self.train.samples_of(view, seed=self.seed)
        starts = range(0, steps, size)
        stops = [min(start + size, steps) for start in starts]
        return [
            Part(number, range(start, stop), order[start * self.batch_size : stop * self.batch_size])
            for number, (start, stop) in enumerate(zip(starts, stops, strict=True), 1)
        ]

    def batches(self, view: int, steps: range) -> Iterator[Batch]:
        """Yield some batches."""
        return self.train.epoch(view, batch_size=self.batch_size, views=self.views, seed=self.seed, steps=steps)


def plan_of(teacher: Teacher, train: Batches, training: Training, seed: int) -> BatchPlan:
    """Return the batches that `teacher` is given where a student is trained on `train`.

    Samples of its own are given as they are: views of the students' are drawn for those. They are read when it is
    asked, which is once where its answers are kept, and not held in memory by every training.
    """
    if teacher.data is None:
        return BatchPlan(train, training.batch_size, training.augmentation, seed)
    own = Batches(teacher.data, train.indices, device=train.device, memory_limit_bytes=0)
    return BatchPlan(own, training.batch_size, None, seed)


class TeacherOutputs:
    """The teacher's outputs for the batches of one training, view by view.

        teacher_outputs.begin(view); outputs = teacher_outputs(inputs, samples) ...; teacher_outputs.end()

    With `cache` and `plan`, `begin` has the teacher compute what the cache lacks of the view, shared out among the
    processes that need the same, and batches are then read. Without, or where the disk is full, the teacher is run on
    each batch. Use inside `tapped`'s context.
    """

    def __init__(
        self,
        tapped: Taps,
        *,
        device: torch.device,
        bfloat16: bool,
        cache: tuple[TeacherCache, ViewsKey] | None,
        plan: BatchPlan | None = None,
        own: Batches | None = None,
    ):
        """`own`: the samples that the teacher is given in the place of the students', all of them."""
        self._stopwatch = Stopwatch(device)
        self._tapped = tapped
        self._device = device
        self._bfloat16 = bfloat16
        self._cache = cache
        self._plan = plan
        self._own = own
        self._rows: _Rows | None = None
        self._storing = True
        self.is_live = False
        """Whether the teacher has been run on a batch that could not be read, there being no cache or no room in it."""

    def begin(self, view: int) -> None:
        """Get ready for the batches of `view`. Raises TrialError where the teacher's outputs are not finite."""
        self._rows = None
        if self._cache is None:
            return
        cache, key = self._cache
        cache.on_view(view)
        self._stopwatch.start()
        kept_as = view if self._plan is None else self._plan.kept_as(view)
        is_sound = cache.forget_damaged(key, kept_as)
        self._storing = self._storing and cache.can_write(key)
        if self._plan is not None and self._storing and is_sound:
            self._fill(view, self._plan)
        found = cache.read(key, kept_as)
        if found is not None and is_sound:
            self._rows = _Rows(found, key, self._device, self._plan)
        self._stopwatch.stop()

    def __call__(self, inputs: tuple[Tensor, ...], samples: Tensor) -> Outputs:
        """Return the teacher's outputs for the plain `inputs` of `samples` [B], without gradients."""
        self._stopwatch.start()
        outputs = None if self._rows is None else self._rows(samples)
        if outputs is None:
            self.is_live = True
            outputs = self._live(inputs if self._own is None else self._own.of(samples).laid_out)
        self._stopwatch.stop()
        return outputs

    def live(self, inputs: tuple[Tensor, ...]) -> Outputs:
        """Return the teacher's outputs for plain `inputs` that are none of the data's samples, without gradients."""
        self._stopwatch.start()
        self.is_live = True
        outputs = self._live(inputs)
        self._stopwatch.stop()
        return outputs

    def end(self) -> float:
        """Return the teacher's seconds in this view."""
        self._rows = None
        return self._stopwatch.take()

    def _live(self, inputs: tuple[Tensor, ...]) -> Outputs:
        with torch.no_grad(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            return self._tapped(*inputs)

    def _fill(self, view: int, plan: BatchPlan) -> None:
        """Have the rows of the view that are missing computed, here or by other processes that need them too.

        First everybody takes parts that nobody else has claimed, then what is left is waited for, and taken over from
        those that died.
        """
        assert self._cache is not None
        cache, key = self._cache
        parts = plan.parts(
            view, max(1, _PART_SAMPLES.get(self._device.type, 512) // (key.predictions * key.embeddings))
        )
        missing = self._lacking(view, parts)
        for patience_s in (0.0, _PATIENCE_S):
            for part in missing:
                if not self._lacking(view, [part]):
                    continue
                claimed = f"{view} {part.steps.start} {plan.digest}"
                with cache.claim(key, claimed, patience_s=patience_s) as ours:
                    waited = patience_s > 0
                    if not ours and not waited:
                        continue
                    if self._lacking(view, [part]) and not self._store(view, plan, part, claimed):
                        self._storing = False  # the disk is full
                        return
                if cache.on_fill is not None:
                    cache.on_fill(view, part.number, len(parts))

    def _lacking(self, view: int, parts: Sequence[Part]) -> list[Part]:
        """Return those of `parts` that have rows which are not there."""
        assert self._cache is not None
        cache, key = self._cache
        assert self._plan is not None
        filled = cache.filled(key, self._plan.kept_as(view))
        return [part for part in parts if filled is None or not filled[self._plan.rows_of(part.samples)].all()]

    def _store(self, view: int, plan: BatchPlan, part: Part, name: str) -> bool:
        """Store the teacher's outputs for some batches, computed by another machine, or now.

        Returns False where that cannot be stored.
        """
        assert self._cache is not None
        cache, key = self._cache
        rows_of = plan.rows_of(part.samples)
        if cache.fetch(key, plan.kept_as(view), name, rows_of):
            return True
        # Batch by batch: the logits of a language model's whole part would fill the memory.
        packed = [
            key.pack([self._live(batch.laid_out)], _begins(key, batch.samples, plan.kept_as(view)))
            for batch in plan.batches(view, part.steps)
        ]
        values = np.concatenate([rows for rows, _ in packed])
        places = None if key.top_k is None else np.concatenate([kept for _, kept in packed if kept is not None])
        if not cache.write(key, plan.kept_as(view), rows_of, values, places):
            return False
        cache.share(key, name, values, places)
        return True


def _begins(key: ViewsKey, samples: Tensor, view: int) -> Tensor | None:
    """Return where the draws of each prediction of `samples` [B] begin, [B * predictions], where tokens are drawn.

    A function of (cache key, view, sample, place) alone. Places of a sample go on by the golden section, so that each
    is uniform, and neighbours are far apart.
    """
    if not key.drawn:
        return None
    first = Draws(samples, int(key.digest[:15], 16), view).uniform("teacher's draws")
    places = torch.arange(key.predictions, device=samples.device) * _GOLDEN
    return ((first[:, None] + places) % 1.0).flatten()


class _Rows:
    """The cached outputs of one view: on the GPU as a whole, so that looking them up never waits for the host."""

    def __init__(self, view: View, key: ViewsKey, device: torch.device, plan: BatchPlan | None):
        """`plan`: what will be looked up; None for any sample, by its place in the training arrays."""
        self._key, self._plan = key, plan
        self._on_device = device.type != "cpu"
        self._rows, self._places, self._filled = view.rows, view.places, view.filled
        if self._on_device:
            self._tensors = _tensor(np.array(view.rows)).to(device)
            self._kept = None if view.places is None else torch.from_numpy(np.array(view.places)).to(device)
            asked = None if plan is None else plan.rows_of(plan.train.indices)
            complete = bool((view.filled if asked is None else view.filled[asked]).all())
            # Asking the device whether a row is there waits for it: only where some are missing.
            self._there = None if complete else torch.from_numpy(view.filled).to(device)
            every = None if plan is None or not plan.by_place else np.arange(len(plan.train.data.train))
            self._row_of = None if every is None or plan is None else torch.from_numpy(plan.rows_of(every)).to(device)

    def __call__(self, samples: Tensor) -> Outputs | None:
        """Return the outputs for `samples` [B]; None where not all are there."""
        places: Tensor | None
        if self._on_device:
            samples = samples if self._row_of is None else self._row_of[samples]
            if self._there is not None and not bool(self._there[samples].all()):
                return None
            rows, places = self._tensors[samples], None if self._kept is None else self._kept[samples]
        else:
            wanted = samples.numpy() if self._plan is None else self._plan.rows_of(samples.numpy())
            if not self._filled[wanted].all():
                return None
            rows = _tensor(self._rows[wanted])
            places = None if self._places is None else torch.from_numpy(self._places[wanted])
        return self._key.unpack(rows, places)


def _tensor(rows: np.ndarray) -> Tensor:
    """Return rows as they were computed: 16 bits are bfloat16's."""
    return torch.from_numpy(rows).view(torch.bfloat16) if rows.dtype == np.uint16 else torch.from_numpy(rows)


def may_be_kept(distillation: Distillation) -> bool:
    """Return whether what the losses of a recipe read of the teacher is small enough to be kept."""
    return not _TOO_LARGE & needs_of(distillation)


def why_live(distillation: Distillation, shapes: OutputShapes, samples: int) -> str | None:
    """Return why the teacher is run on every batch of a training by this recipe; None where its outputs are kept.

    `shapes` are those of its outputs for what it takes at a time, `samples` how many of these a view has.
    """
    if may_be_kept(distillation):
        return None
    terms = [term for term in distillation.losses if term.weight > 0]
    readers = [term.type for term in terms if _TOO_LARGE & LOSSES.get(term.type).needs]
    numbers = sum(math.prod(stage) for stage in shapes.stages)
    what = "stage maps" if all(len(stage) == 3 for stage in shapes.stages) else "tokens"
    if "attention" in needs_of(distillation):
        numbers += sum(layer.tokens * (layer.queries + layer.keys + layer.values) for layer in shapes.attention)
        what = "attention"
    read = "reads" if len(readers) == 1 else "read"
    size = samples * numbers * _MAP_BYTES / 2**30
    return f"{', '.join(readers)} {read} the teacher's {what}, which are not kept: {size:,.3g} GiB a view"


def views_key(
    teacher: Teacher,
    shapes: OutputShapes,
    plan: BatchPlan,
    *,
    needs: frozenset[Output],
    bfloat16: bool,
    top_k: int | None = None,
    drawn: bool = False,
) -> ViewsKey | None:
    """Return the cache's key for what the losses read, or None where they read what is not kept.

    Where views mix samples, those that are trained on belong to the key.
    """
    if _TOO_LARGE & needs:
        return None
    train = plan.train
    described = "" if plan.views is None else plan.views.model_dump_json()
    if train.task.mixes(plan.views):
        described += f" of {hashlib.sha256(train.indices.astype('<i8').tobytes()).hexdigest()}"
    if not train.task.varies(plan.views):
        described = "none"
    whole = train.data.fingerprint
    part = hashlib.sha256(np.sort(train.indices).astype("<i8").tobytes()).hexdigest() if plan.by_place else ""
    return ViewsKey(
        teacher=f"{teacher.fingerprint} {coarse_key(teacher.answers)}".strip(),
        data=f"{whole} at {part}" if plan.by_place else whole,
        augmentation=described,
        view_seed=plan.seed if train.task.varies(plan.views) else 0,
        precision="bfloat16" if bfloat16 else "float32",
        device=train.device.type,
        samples=len(train) if plan.by_place else len(train.data.train),
        outputs=shapes.outputs,
        embedding=shapes.embedding if "embedding" in needs else 0,
        top_k=None if top_k is None else top_k if drawn else min(top_k, shapes.outputs),
        drawn=drawn,
        predictions=train.task.spec.rows,
        embeddings=train.task.spec.runs,
    )
