"""How long runs take, as multiples of a reference that runs in between, so that the machine's drift cancels.

One round is: reference, run 1, reference, run 2, ..., reference. A run's ratio in a round is its time over the mean of
the reference's times just before and just after it; its latency is the median of its ratios times what one pass of
the reference takes on this machine. A slower spell, another clock rate or a neighbour slows both sides of a ratio.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[], Any]
"""One forward pass, ended when it returns."""
Clock = Callable[[], float]
"""Seconds since some moment."""

CALM = 0.25
"""Interquartile range over median of the reference's times, above which an attempt is repeated."""
_ATTEMPTS = 3
_PARTS = 5


@dataclass(frozen=True)
class Timing:
    """The times of several runs, in seconds: `runs` [round][run], and the `reference` [round][run + 1] around them."""

    runs: tuple[tuple[float, ...], ...]
    reference: tuple[tuple[float, ...], ...]

    def ratios(self, run: int) -> list[float]:
        """Return run number `run` as a multiple of the reference, one value a round."""
        return [
            2 * times[run] / (reference[run] + reference[run + 1])
            for times, reference in zip(self.runs, self.reference, strict=True)
        ]

    @cached_property
    def reference_ms(self) -> float:
        """Median time of one pass of the reference, in ms."""
        return statistics.median(seconds for row in self.reference for seconds in row) * 1e3

    @cached_property
    def unrest(self) -> float:
        """Interquartile range over median of the reference's times."""
        median, spread = median_and_spread([seconds for row in self.reference for seconds in row])
        return spread / median

    @cached_property
    def drift(self) -> float:
        """How much the reference changed meanwhile: the slowest fifth's median over the fastest fifth's, minus 1."""
        times = [seconds for row in self.reference for seconds in row]
        cuts = [len(times) * part // _PARTS for part in range(_PARTS + 1)]
        medians = [statistics.median(times[start:end]) for start, end in itertools.pairwise(cuts)]
        return max(medians) / min(medians) - 1


def interleaved(
    runs: Sequence[Run], reference: Run, *, rounds: int, warmup: int, clock: Clock = time.perf_counter
) -> Timing:
    """Return the times of `rounds` rounds, after `warmup` rounds that are not timed. `rounds` is at least 2."""

    def seconds(run: Run) -> float:
        start = clock()
        run()
        return clock() - start

    for _ in range(warmup):
        for run in (reference, *runs):
            run()
    taken, around = [], []
    for _ in range(rounds):
        references, times = [seconds(reference)], []
        for run in runs:
            times.append(seconds(run))
            references.append(seconds(reference))
        taken.append(tuple(times))
        around.append(tuple(references))
    return Timing(tuple(taken), tuple(around))


def calmest(
    runs: Sequence[Run], reference: Run, *, rounds: int, warmup: int, clock: Clock = time.perf_counter
) -> Timing:
    """Return the timing in which the reference was steadiest: the first calm one of three attempts, else the best."""
    attempts = []
    for _ in range(_ATTEMPTS):
        attempts.append(interleaved(runs, reference, rounds=rounds, warmup=warmup, clock=clock))
        if attempts[-1].unrest <= CALM:
            break
    return min(attempts, key=lambda timing: timing.unrest)


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the interquartile range of at least two values."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return median, third - first


def middle_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half of `values`: as deaf to hiccups as the median, and less noisy."""
    ordered, cut = sorted(values), len(values) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])


def reference_network() -> tuple[nn.Module, Tensor]:
    """Return the reference network (14 M MACs) and its input: the same everywhere and for every task."""
    layers: list[nn.Module] = []
    for inner, outer, stride in ((16, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)):
        layers += [nn.Conv2d(inner, outer, 3, stride, 1), nn.ReLU()]
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.01)
    return network, torch.full((1, 16, 32, 32), 0.5)
