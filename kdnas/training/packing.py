"""How many students a device trains at once: as many as pay, measured there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from kdnas.core.data import Data
from kdnas.errors import TrialError
from kdnas.training.batches import Batches
from kdnas.training.loop import Course, Pupil, train
from kdnas.training.recipe import Recipe, labels_alone

SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Packing:
    """How many students to train at once, and the samples a second, of all of them, at each number that was tried."""

    size: int
    rates: Mapping[int, float] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What was measured and chosen; empty where nothing was measured."""
        if not self.rates:
            return ""
        tried = ", ".join(f"{size}: {rate:,.0f}" for size, rate in self.rates.items())
        chosen = "one student" if self.size == 1 else f"{self.size} students"
        return f"{chosen} at a time on each device, as measured (samples a second by students at a time: {tried})"


def choose_size(rate: Callable[[int], float], *, sizes: Sequence[int] = SIZES) -> Packing:
    """Return the largest of `sizes` that was still worth it: each must be 5 % faster than the one before.

    `rate` measures the samples a second of so many students together. A size that fails (TrialError: memory) ends the
    trying; the first one's failure is raised.
    """
    rates: dict[int, float] = {}
    chosen = sizes[0]
    for size in sizes:
        try:
            rates[size] = rate(size)
        except TrialError:
            if not rates:
                raise
            break
        if size == chosen:
            continue
        if rates[size] < 1.05 * rates[chosen]:
            break
        chosen = size
    return Packing(chosen, rates)


def measured_rate(
    make_network: Callable[[], nn.Module],
    size: int,
    train_on: Batches,
    recipe: Recipe,
    *,
    data: Data,
    device: torch.device,
    graphs: bool = True,
) -> float:
    """Return the samples a second of `size` such students trained together by the labels alone, all of them counted.

    Two epochs are trained; the second is measured, when everything is captured. Raises TrialError where one fails.
    """
    training = recipe.training.model_copy(update={"epochs": 2})
    alone = Recipe(training=training, distillation=labels_alone(recipe.distillation))
    course = Course(data, train_on, None, None, 0, device, graphs=graphs)
    outcomes = train(course, [Pupil(make_network(), alone, 0) for _ in range(size)])
    seconds = 0.0
    for outcome in outcomes:
        if isinstance(outcome, TrialError):
            raise outcome
        seconds += outcome.history[1].seconds  # equal shares of the clock
    return size * len(train_on) / seconds
