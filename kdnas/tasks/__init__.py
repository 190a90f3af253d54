"""Kinds of work: what samples look like, how they are varied, how a network takes them, and what is a good answer.

A task defines all that training, losses, caches and evaluation do not define of samples. Nothing here imports torch
before it is needed: a study is read without it.

Shapes: B batch, M rows, V outputs (classes or tokens), N samples, T positions of a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from kdnas.core.task import TaskSpec
from kdnas.registry import Registry, Section

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdnas.nn.rows import Batch, Rows


class Described(Protocol):
    """What states how samples are prepared: the data set, the record of a run, a training's file."""

    @property
    def statistics(self) -> Mapping[str, Sequence[float]]:
        """The statistics of the training samples that the task's entrance needs, by name."""


class Task(ABC):
    """One kind of work on samples of one shape, `spec`.

    A member states `Views`, the settings of its random views, whose defaults leave samples as they are.
    """

    Views: ClassVar[type[Section]]
    views_in_words: ClassVar[str] = "random views of the samples"
    """What the random views are; empty where samples are not varied."""
    split_in_words: ClassVar[str] = "drawn at random"
    """How `split` carves, for those who read of it."""

    def __init__(self, spec: TaskSpec):
        self.spec = spec

    def split(self, targets: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted places (kept, carved) of samples with these `targets` [N, ...]: `share` is carved by `seed`."""
        order = np.random.default_rng(seed).permutation(len(targets))
        count = round(share * len(targets))
        return np.sort(order[count:]), np.sort(order[:count])

    def draw(self, targets: np.ndarray, share: float, seed: int) -> np.ndarray:
        """Return the sorted places of a `share` in (0, 1] of the samples, to train on fewer."""
        return self.split(targets, share, seed)[1]

    @abstractmethod
    def plain(self, batch: Batch) -> Batch:
        """Return samples as they are stored in the types that networks take."""

    @abstractmethod
    def view(
        self,
        batch: Batch,
        views: Any,
        data: Any,
        *,
        seed: int,
        number: int,
        samples: np.ndarray,
        count: int,
        others: Callable[[np.ndarray], Batch],
    ) -> Batch:
        """Return a random view of samples as they are stored, in the types that networks take.

        Every draw is a function of (seed, number, sample) alone (`kdnas.tasks._draws`): neither the order of the
        batches nor their size changes a view.

        Args:
            batch: The samples, on the device.
            views: The task's `Views`.
            data: The data set, for its statistics.
            seed: The study's seed.
            number: Of the view, the epoch from 0.
            samples: The samples' places in the data's arrays, int64 [B]: `batch.samples` without asking the device.
            count: How many samples `others` has.
            others: Gives the samples at places int64 [n] in 0..count-1, as they are stored: to mix samples with.
        """

    def mixes(self, views: Any) -> bool:
        """Return whether a view of a sample has others in it; of `views` None, samples as they are, none has."""
        return False

    def varies(self, views: Any) -> bool:
        """Return whether a sample may look otherwise in every view, which by the defaults of `Views` it does not."""
        return views is not None and views != self.Views()

    def check_statistics(self, statistics: Mapping[str, Sequence[float]]) -> None:
        """Raise ValueError where `statistics` are not those that the entrance needs; here they may be anything."""
        return

    @abstractmethod
    def entrance(self, network: nn.Module, data: Described, size: int | None = None) -> nn.Module:
        """Return `network` as `network` of a module that takes plain samples: normalised first, and at `size`.

        Args:
            network: Takes what the student families build for.
            data: The data set, or whatever else states its `statistics` by name.
            size: Of the samples as `network` gets them (`TaskSpec.at`); None: their own.
        """

    def weights(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor | None:
        """Return how much each prediction counts, float [B] or [B, T]; None where all count the same."""
        return None

    def rows(self, logits: Tensor, inputs: tuple[Tensor, ...], targets: Tensor) -> Rows:
        """Return the predictions `logits` [B, V], [B, T, V] or [M, V] of a batch as rows."""
        from kdnas.nn.rows import Rows

        logits = logits.flatten(0, -2)
        weights = self.weights(inputs, targets)
        if self.spec.rows > 1:
            targets = targets.flatten(0, 1)
        return Rows(logits, targets, None if weights is None else weights.flatten())

    @abstractmethod
    def tally(self, rows: Rows) -> Tensor:
        """Return float64 [n], on the device of the rows: what the score is made of, such as a sum and its weight."""

    def together(self, tallies: Sequence[Tensor]) -> Tensor:
        """Return the tally of all batches, of theirs: the sum."""
        import torch

        return torch.stack(list(tallies)).sum(dim=0)

    @abstractmethod
    def score(self, tally: Tensor) -> float:
        """Return the score, in the unit of `spec.score`, of a tally on the CPU."""

    def scores(self, tally: Tensor) -> Mapping[str, float]:
        """Return all that is known of how good the answers of a tally on the CPU are, by name, the score among it."""
        return {self.spec.score.name: self.score(tally)}

    @abstractmethod
    def worst(self, targets: np.ndarray) -> float:
        """Return the score on samples with these `targets` of the best answer that looks at no sample."""

    def worsts(self, targets: np.ndarray) -> Mapping[str, float]:
        """Return what `worst` does, by name: of the score, and where there are several tasks of each one's."""
        return {self.spec.score.name: self.worst(targets)}


TASKS: Registry[type[Task]] = Registry("task", __name__, Task)
"""Members: subclasses of `Task`, built from a spec whose `kind` is their name."""


def task_of(spec: TaskSpec) -> Task:
    """Return the task of this `spec`. Raises ConfigError where no task is called by its kind."""
    task: Task = TASKS.build(spec.kind, spec)
    return task
