"""Decoded data sets as plain arrays, and the seeded split that search scores are made on."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np

from kdnas.core.objective import OF_CLASSES, Quantity
from kdnas.core.task import (
    IMAGE_CLASSIFICATION,
    UNLABELLED,
    Head,
    TaskSpec,
    image_classification,
    multitask_image_classification,
)


class Array(Protocol):
    """What samples are read from as from a numpy array [N, ...]: one, a memory map, or rows made when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows that are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any:
        """Return the rows at a slice, or at places int64 [n], as a numpy array."""

    def __array__(self) -> Any:
        """Return all rows."""


@dataclass(frozen=True)
class Samples:
    """N samples of a data set.

    `inputs` are arrays [N, ...] by the names of the task's inputs and in their order, perhaps read-only memory maps;
    `targets` is int64 [N], or [N, T] where a sample has T predictions, [N, P] where P tasks are done on it; float32 [N]
    where numbers are predicted. A class that is not known is `UNLABELLED`.
    """

    inputs: Mapping[str, Array]
    targets: np.ndarray
    keys: np.ndarray | None = None
    """What tells each sample from all others, text [N], such as a file's name; None where nothing does."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Data(ABC):
    """A decoded data set. `fingerprint` is a hash of its content; `test` is only for the final evaluation."""

    poses: ClassVar[str] = IMAGE_CLASSIFICATION
    """The kind of its task, known before any data are open."""

    name: str
    class_names: tuple[str, ...]
    """In the order of the outputs; empty where these have no names."""
    train: Samples
    test: Samples
    fingerprint: str
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What the user should know of how the data was read: what was converted, left out, or occurs twice."""
    stated_validation: int = field(default=0, kw_only=True)
    """So many of the last training samples are those that students are scored on; 0: a share is drawn."""

    scores: ClassVar[tuple[Quantity, ...]] = ()
    """What tasks on data of this kind may be scored by, the usual one first; empty where that is not known."""
    kind: str = field(default="", kw_only=True)
    """The task that they are put to; empty: the one that they pose."""
    scored_by: Quantity | None = field(default=None, kw_only=True)
    """What the study scores by; None: the usual score of the task."""

    @property
    @abstractmethod
    def task(self) -> TaskSpec:
        """The task this data poses."""

    def put_to(self, posed: TaskSpec) -> TaskSpec:
        """Return the task `posed` as the study has it: of its kind, and scored by its score."""
        return replace(posed, kind=self.kind or posed.kind, score=self.scored_by or posed.score)

    def questions(self, targets: np.ndarray) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """Return for each task its class names, and those of `targets` [N, ...] that are known, int64 [n]."""
        heads = self.task.heads
        columns = [(self.class_names[head.places], targets[:, place]) for place, head in enumerate(heads)]
        return [(names, own[own != UNLABELLED]) for names, own in columns or [(self.class_names, targets)]]

    @property
    def statistics(self) -> Mapping[str, tuple[float, ...]]:
        """The statistics of the training samples that the task's entrance needs, by name."""
        return {}


@dataclass(frozen=True)
class ImageData(Data):
    """Labelled images: the one input, `pixels`, is uint8 [N, C, H, W]."""

    channel_mean: tuple[float, ...]
    """Per channel over the training images, on the 0-255 scale."""
    channel_std: tuple[float, ...]
    scores: ClassVar[tuple[Quantity, ...]] = OF_CLASSES
    heads: tuple[Head, ...] = field(default=(), kw_only=True)
    """Of several tasks: each one's classes stand in `class_names` as `TASK: CLASS`; empty: of one task."""

    @cached_property
    def task(self) -> TaskSpec:
        """Image classification at the images' size, of one kind or of several."""
        channels, height, width = self.train.inputs["pixels"].shape[1:]
        shape = channels, height, width
        posed = (
            multitask_image_classification(shape, self.heads)
            if self.heads
            else image_classification(shape, len(self.class_names))
        )
        return self.put_to(replace(posed, partly=bool((self.train.targets == UNLABELLED).any())))

    def asking(self, task: str) -> ImageData:
        """Return the same images with the labels of `task` alone, one of several: what a specialist is given."""
        place = [head.name for head in self.heads].index(task)
        names = self.class_names[self.heads[place].places]
        train, test = (replace(part, targets=part.targets[:, place]) for part in (self.train, self.test))
        return replace(
            self,
            class_names=tuple(name.removeprefix(class_of(task, "")) for name in names),
            train=train,
            test=test,
            fingerprint=hashlib.sha256(f"{self.fingerprint} {task}".encode()).hexdigest()[:16],
            kind="",
            heads=(),
        )

    @property
    def statistics(self) -> Mapping[str, tuple[float, ...]]:
        """Mean and deviation of every channel."""
        means, deviations = (tuple(map(float, values)) for values in (self.channel_mean, self.channel_std))
        return {"channel_mean": means, "channel_std": deviations}


def class_of(task: str, name: str) -> str:
    """Return what a class of one of several tasks is called among those of all."""
    return f"{task}: {name}"


def stratified_split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (kept, carved) sorted index arrays; `carved` holds `fraction` of every class, drawn by `seed`.

    Every class keeps at least one sample on both sides where it has two or more; its only one is kept.
    """
    rng = np.random.default_rng(seed)
    carved: list[np.ndarray] = []
    for target in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == target))
        count = round(fraction * len(members))
        count = min(max(count, min(1, len(members) - 1)), len(members) - 1) if 0 < fraction < 1 else count
        carved.append(members[:count])
    chosen = np.sort(np.concatenate(carved)) if carved else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(targets)), chosen), chosen
