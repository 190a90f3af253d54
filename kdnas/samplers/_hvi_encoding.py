"""Proposals as numbers: codes to draw and vary, features for a surrogate to compare.

N proposals, D dimensions (the choices of the space, then the tuned settings), P features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from kdnas.core.arch import Scalar, normalise_scalar
from kdnas.core.space import SearchSpace

_GRID = 11
"""Levels at which a continuous setting is told apart."""
_CORRELATION_LENGTH = 0.5
"""Of the levels of an ordinal dimension, as a share of its range."""


@dataclass(frozen=True)
class Dimension:
    """A choice or setting with `levels` values; `values` is empty for a continuous one, drawn at a grid of levels."""

    name: str
    values: tuple[Scalar, ...]
    ordinal: bool
    continuous: FloatDistribution | None = None

    @property
    def levels(self) -> int:
        """The number of values that are told apart."""
        return _GRID if self.continuous else len(self.values)

    def value(self, code: int) -> Scalar:
        """Return the value of a code in 0..levels-1."""
        if self.continuous is None:
            return self.values[code]
        low, high, share = self.continuous.low, self.continuous.high, code / (_GRID - 1)
        if self.continuous.log:
            return float(np.clip(low * (high / low) ** share, low, high))
        return low + (high - low) * share

    def code(self, value: Scalar) -> int:
        """Return the code of a value (the nearest level of a continuous one)."""
        if self.continuous is None:
            return self.values.index(normalise_scalar(value))
        low, high, at = self.continuous.low, self.continuous.high, float(value)
        share = math.log(at / low) / math.log(high / low) if self.continuous.log else (at - low) / (high - low)
        return round(min(max(share, 0.0), 1.0) * (_GRID - 1))


class Encoding:
    """Turns the assignments of a space (with tuned settings) into codes [N, D] and features."""

    def __init__(self, space: SearchSpace, tuned: Mapping[str, BaseDistribution]):
        self.space = space
        self.dimensions = [
            Dimension(c.name, tuple(map(normalise_scalar, c.values)), _ordered(c.values)) for c in space.choices
        ]
        self.dimensions += [
            Dimension(name, (), True, distribution)
            for name, distribution in tuned.items()
            if isinstance(distribution, FloatDistribution)
        ]
        self.levels = np.array([dimension.levels for dimension in self.dimensions])
        self._column = {dimension.name: i for i, dimension in enumerate(self.dimensions)}
        self._blocks = [_level_features(dimension) for dimension in self.dimensions]
        self._families = _families(self.dimensions)

    def codes(self, assignments: Sequence[Mapping[str, Scalar]]) -> np.ndarray:
        """Return the codes [N, D] of assignments."""
        rows = [[dimension.code(row[dimension.name]) for dimension in self.dimensions] for row in assignments]
        return np.asarray(rows, dtype=int).reshape(len(rows), len(self.dimensions))

    def assignment(self, codes: np.ndarray) -> dict[str, Scalar]:
        """Return the assignment of codes [D]."""
        return {
            dimension.name: dimension.value(code)
            for dimension, code in zip(self.dimensions, codes.tolist(), strict=True)
        }

    def canonical(self, codes: np.ndarray) -> np.ndarray:
        """Return `codes` [N, D] with -1 where a choice is not active."""
        known: dict[str, np.ndarray] = {}

        def active(name: str) -> np.ndarray:
            if name not in known:
                mask = np.ones(len(codes), dtype=bool)
                for gate in self.space.conditions:
                    if gate.choice == name:
                        mask &= active(gate.when) & self._has_value(codes, gate.when, gate.values)
                known[name] = mask
            return known[name]

        return np.where(np.stack([active(d.name) for d in self.dimensions], axis=1), codes, -1)

    def features(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (levels [N, P], counts [N, G]) of codes.

        The dot product of two rows of levels is the share of dimensions in which they agree, nearby levels of an
        ordinal dimension counted in part. Counts say how often each value occurs among choices with the same domain.
        """
        canonical = self.canonical(codes)
        blocks = [block[canonical[:, i]] for i, block in enumerate(self._blocks)]  # the last row stands for -1
        counts = [
            (canonical[:, family] * (canonical[:, family] >= 0)).sum(axis=1)
            if level is None
            else (canonical[:, family] == level).sum(axis=1)
            for family, level in self._families
        ]
        gathered = np.stack(counts, axis=1).astype(float) if counts else np.zeros((len(codes), 0))
        return np.concatenate(blocks, axis=1) / math.sqrt(len(self.dimensions)), gathered

    def _has_value(self, codes: np.ndarray, name: str, values: Sequence[Scalar]) -> np.ndarray:
        if name not in self._column:
            return np.full(len(codes), self.space.fixed.get(name) in values)
        column = self._column[name]
        meant = [code for code, value in enumerate(self.dimensions[column].values) if value in values]
        return np.isin(codes[:, column], meant)


def _ordered(values: Sequence[Scalar]) -> bool:
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return len(numbers) == len(values) > 2 and sorted(numbers) == list(values)


def _level_features(dimension: Dimension) -> np.ndarray:
    """Return a row for each level, and a last one for not active, whose dot products are the levels' correlations."""
    levels = dimension.levels
    similarity = np.eye(levels + 1)
    if dimension.ordinal:
        place = np.linspace(0.0, 1.0, levels)
        apart = (place[:, None] - place[None, :]) / _CORRELATION_LENGTH
        similarity[:levels, :levels] = np.exp(-0.5 * apart**2)
    return np.linalg.cholesky(similarity + 1e-6 * np.eye(levels + 1))


def _families(dimensions: Sequence[Dimension]) -> list[tuple[list[int], int | None]]:
    """Return (columns, level) of what is counted: the levels of alike choices, or (None) the sum of ordinal ones."""
    alike: dict[tuple[Scalar, ...], list[int]] = {}
    for column, dimension in enumerate(dimensions):
        if dimension.continuous is None:
            alike.setdefault(dimension.values, []).append(column)
    result: list[tuple[list[int], int | None]] = []
    for columns in (columns for columns in alike.values() if len(columns) > 1):
        first = dimensions[columns[0]]
        result += [(columns, None)] if first.ordinal else [(columns, level) for level in range(first.levels)]
    return result
