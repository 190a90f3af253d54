"""An additive latency table: what each operator of a space adds to a student's latency, and how well that fits.

    latency(arch) = constant + sum over its operators of entry(operator)
    entry(operator) = weights(sort of operator) . (1, MACs, elements written, elements read, and these in full vectors)

`kdnas.workshop.latency_table` learns one from whole students.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdnas.core.operator import Operator, OperatorGroup

_VECTOR = 16
"""Channels that a processor's vector of float32 holds: a convolution of fewer costs as many."""
FEATURES = 7


@dataclass(frozen=True)
class LatencyTable:
    """The table of one space on one target: `constant_ms`, and `weights_ms` of each feature by sort of operator."""

    constant_ms: float
    weights_ms: Mapping[str, tuple[float, ...]]

    def price(self, operators: Iterable[Operator]) -> float:
        """Return the latency in ms of a student that consists of `operators`."""
        return self.constant_ms + sum(map(self._entries.__getitem__, operators))

    def price_groups(self, groups: Iterable[OperatorGroup]) -> float:
        """Return the same of operators in groups; microseconds."""
        return self.constant_ms + sum(map(self._sums.__getitem__, groups))

    @functools.cached_property
    def _entries(self) -> _Entries:
        return _Entries(self.weights_ms)

    @functools.cached_property
    def _sums(self) -> _Sums:
        return _Sums(self._entries)


class _Entries(dict[Operator, float]):
    """The milliseconds of each operator met so far."""

    def __init__(self, weights_ms: Mapping[str, tuple[float, ...]]):
        super().__init__()
        self._weights_ms = weights_ms

    def __missing__(self, operator: Operator) -> float:
        weights = self._weights_ms.get(sort_of(operator)) or self._nearest(operator)
        self[operator] = sum(weight * value for weight, value in zip(weights, features(operator), strict=True))
        return self[operator]

    def _nearest(self, operator: Operator) -> tuple[float, ...]:
        """Return the weights of the sort that is most alike, for one that the sample did not hold."""
        wanted = sort_of(operator).split()
        alike = {sort: sum(map(str.__eq__, sort.split(), wanted)) for sort in sorted(self._weights_ms)}
        return self._weights_ms[max(alike, key=lambda sort: alike[sort])]


class _Sums(dict[OperatorGroup, float]):
    """The milliseconds of each group of operators met so far."""

    def __init__(self, entries: _Entries):
        super().__init__()
        self._entries = entries

    def __missing__(self, group: OperatorGroup) -> float:
        self[group] = sum(map(self._entries.__getitem__, group.operators))
        return self[group]


@dataclass(frozen=True)
class TableFit:
    """How well a table prices students that it was not learned from."""

    learned_from: int
    held_out: int
    median_error: float
    """Of the relative errors, as `max_error`."""
    max_error: float
    spearman: float
    """Rank correlation of prices and measurements, as `kendall`."""
    kendall: float

    @property
    def words(self) -> str:
        """It on one line."""
        return (
            f"on {self.held_out:.0f} students held out it errs by {self.median_error:.1%} in the median and "
            f"{self.max_error:.1%} at most; rank correlation {self.spearman:.3f} (Spearman), {self.kendall:.3f} "
            "(Kendall)"
        )


def sort_of(operator: Operator) -> str:
    """Return what operators must share to share weights."""
    depthwise = "depthwise" if operator.groups > 1 else "dense"
    return f"{operator.kind} {depthwise} {operator.kernel}x{operator.kernel} stride{operator.stride}"


def features(operator: Operator) -> tuple[float, ...]:
    """Return what an operator's time grows with, of order 1."""
    written, read = operator.out_height * operator.out_width, operator.height * operator.width
    full = operator._replace(
        in_channels=_whole_vectors(operator.in_channels), out_channels=_whole_vectors(operator.out_channels)
    )
    if operator.groups > 1:
        full = full._replace(groups=full.in_channels)
    return (
        1.0,
        operator.macs / 1e6,
        operator.out_channels * written / 1e4,
        operator.in_channels * read / 1e4,
        full.macs / 1e6,
        full.out_channels * written / 1e4,
        full.in_channels * read / 1e4,
    )


def _whole_vectors(channels: int) -> int:
    return -(-channels // _VECTOR) * _VECTOR
