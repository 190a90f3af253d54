"""Proposals and trials as numbers: codes to draw and vary, features for a surrogate to compare, a study's history.

N proposals or trials, D dimensions (the choices of the space, then the tuned settings), P features, M objectives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from kdnas.core.arch import Scalar, normalise_scalar
from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import Quantity
from kdnas.core.space import SearchSpace

_GRID = 11
"""Levels at which values of a continuous setting are distinguished."""
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
        """The number of values that are distinguished."""
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
        for name, asked in tuned.items():
            if isinstance(asked, FloatDistribution):
                self.dimensions.append(Dimension(name, (), True, asked))
            elif isinstance(asked, CategoricalDistribution):
                values = [normalise_scalar(value) for value in asked.choices if value is not None]
                self.dimensions.append(Dimension(name, tuple(values), _ordered(values)))
        self.levels = np.array([dimension.levels for dimension in self.dimensions])
        self._column = {dimension.name: i for i, dimension in enumerate(self.dimensions)}
        self._blocks = [_level_features(dimension) for dimension in self.dimensions]
        self.dimension_of_level = np.repeat(np.arange(len(self._blocks)), [block.shape[1] for block in self._blocks])
        self._families = _families(self.dimensions)
        self._identities: dict[bytes, int] = {}

    def codes(self, assignments: Sequence[Mapping[str, Scalar]]) -> np.ndarray:
        """Return the codes [N, D] of assignments."""
        codes = np.empty((len(assignments), len(self.dimensions)), dtype=int)
        for column, dimension in enumerate(self.dimensions):
            code = lru_cache(maxsize=None, typed=True)(dimension.code)  # thousands of trials have the same few values
            codes[:, column] = [code(row[dimension.name]) for row in assignments]
        return codes

    def assignment(self, codes: np.ndarray) -> dict[str, Scalar]:
        """Return the assignment of codes [D]."""
        return {
            dimension.name: dimension.value(code)
            for dimension, code in zip(self.dimensions, codes.tolist(), strict=True)
        }

    def canonical(self, codes: np.ndarray) -> np.ndarray:
        """Return `codes` [N, D] with -1 where a choice is not active."""
        everywhere = np.ones(len(codes), dtype=bool)
        active: dict[str, np.ndarray] = {}
        for gate in self.space.gates:
            met = active.get(gate.when, everywhere) & self._has_value(codes, gate.when, gate.values)
            active[gate.choice] = active.get(gate.choice, everywhere) & met
        return np.where(np.stack([active.get(d.name, everywhere) for d in self.dimensions], axis=1), codes, -1)

    def identity(self, codes: np.ndarray) -> np.ndarray:
        """Return a number [N] for each of `codes` [N, D], the same for two spellings of one student."""
        rows = self.canonical(codes)
        content, width = rows.tobytes(), rows.itemsize * rows.shape[1]
        keys = (content[at : at + width] for at in range(0, len(content), width))
        return np.array([self._identities.setdefault(key, len(self._identities)) for key in keys], dtype=int)

    def features(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (levels [N, P], counts [N, G]) of codes.

        The dot product of two rows of levels is the share of dimensions in which they agree, nearby levels of an
        ordinal dimension counted in part. Counts are how often each value occurs among choices with the same domain.
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


@dataclass(frozen=True)
class History:
    """The data of the ended and the running trials. Values that are not known are NaN."""

    numbers: np.ndarray
    """[N]: the trials' own"""
    codes: np.ndarray
    """[N, D]"""
    rung: np.ndarray
    """[N], 0 the lowest"""
    values: np.ndarray
    """[N, M], smaller is better"""
    running: np.ndarray
    """[N] bool"""
    eligible: np.ndarray
    """[N] bool: complete and within its constraints, so that it may stand on the front."""
    violations: np.ndarray
    """[N, L]: how far each bound was missed (positive), for bounds missed at least once; the last may be failing."""

    def __len__(self) -> int:
        return len(self.rung)


def read_history(
    trials: Sequence[FrozenTrial],
    encoding: Encoding,
    objectives: Sequence[Quantity],
    fidelities: Sequence[Fidelity],
) -> History:
    """Return the trials of a study as arrays; interrupted ones and those without a full proposal are left out."""
    names = {dimension.name for dimension in encoding.dimensions}
    seen = [trial for trial in trials if names <= trial.params.keys() and not _void(trial)]
    signs = np.array([objective.minimised(1.0) for objective in objectives])
    values = np.array([_values(trial, objectives) for trial in seen]).reshape(len(seen), len(objectives))
    bounds = sorted({name for trial in seen for name, violation in trial.constraints.items() if violation > 0})
    violations = [[trial.constraints.get(name, np.nan) for name in bounds] for trial in seen]
    failures = np.array([_failure(trial) for trial in seen])
    missed = np.array(violations, dtype=float).reshape(len(seen), len(bounds))
    if np.any(failures > 0):
        missed = np.column_stack([missed, failures])
    complete = np.array([trial.state == TrialState.COMPLETE for trial in seen], dtype=bool)
    return History(
        np.array([trial.number for trial in seen], dtype=int),
        encoding.codes([trial.params for trial in seen]),
        np.array([_rung(trial, fidelities) for trial in seen], dtype=int),
        signs * values,
        np.array([trial.state == TrialState.RUNNING for trial in seen], dtype=bool),
        complete & ~np.any(missed > 0, axis=1),
        missed,
    )


def _void(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.WAITING or bool(trial.user_attrs.get("interrupted"))


def _failure(trial: FrozenTrial) -> float:
    """Return 1 for a failed trial, -1 for one that could be scored, NaN while that is not known."""
    if trial.state == TrialState.RUNNING:
        return np.nan
    return 1.0 if trial.state == TrialState.FAIL else -1.0


def _values(trial: FrozenTrial, objectives: Sequence[Quantity]) -> list[float]:
    """Return the objectives' values: an infeasible trial has those that were measured before it was refused."""
    if trial.state == TrialState.COMPLETE:
        return [float(value) for value in trial.values or ()]
    result: Mapping[str, Any] = trial.user_attrs.get("result") or {}
    return [float(result.get("values", {}).get(objective.name, np.nan)) for objective in objectives]


def _rung(trial: FrozenTrial, fidelities: Sequence[Fidelity]) -> int:
    """Return the rung a trial was scored at; the highest where none is recorded, the lowest for one that starts."""
    if not fidelities:
        return 0
    stored = trial.user_attrs.get("fidelity")
    if stored is None:
        return 0 if trial.state == TrialState.RUNNING else len(fidelities) - 1
    amount = Fidelity.from_dict(stored).amount
    return int(np.argmin([abs(rung.amount - amount) for rung in fidelities]))
