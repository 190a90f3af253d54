"""Learning an additive latency table (`kdnas.core.latency_table`) from whole students.

Timing operators one by one misses caches and dispatch, so the entries are solved for from about 50 whole students,
by ridge-regularised non-negative least squares on relative errors. An operator that no measured student had gets its
entry from its sort's weights. The students are a D-optimal sample (Fedorov, "Theory of Optimal Experiments", 1972,
chosen greedily), so that every sort of operator is seen in small and in large. Lookup tables that add up
operators: Wu et al., "FBNet" (CVPR 2019), Cai et al., "ProxylessNAS" (ICLR 2019), "Once-for-All" (ICLR 2020).
Non-negative least squares: Lawson and Hanson, "Solving Least Squares Problems" (1974).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdnas.core.arch import Arch
from kdnas.core.latency_table import FEATURES, LatencyTable, TableFit, features, sort_of
from kdnas.core.measurement import Calibration
from kdnas.core.operator import Operator
from kdnas.core.rank import kendall_tau
from kdnas.core.seeds import derive_seed
from kdnas.core.space import SearchSpace
from kdnas.costs import CheapCost, MeasuredCost
from kdnas.costs.latency_ms import LatencyCalibration, LatencyMs
from kdnas.errors import RunError
from kdnas.nn.timing import interleaved, median_and_spread, middle_mean
from kdnas.outlets import Notify, silent
from kdnas.students import StudentFamily
from kdnas.study.spaces import arch_of
from kdnas.targets import given

Floats = NDArray[np.float64]

SAMPLES, HELD_OUT = 50, 30
_POOL = 1500
_RIDGE = 0.02
"""Penalty on weights, in shares of a student's latency; errors hardly change between 0.003 and 0.1."""


@dataclass(frozen=True)
class MeasuredArch:
    """A measured student: `latency_ms` (a middle mean), its interquartile range, and what the table predicts for it."""

    arch: Arch
    held_out: bool
    latency_ms: float
    spread_ms: float
    predicted_ms: float

    @property
    def relative_error(self) -> float:
        """The table's error as a share of the measured latency, signed."""
        return self.predicted_ms / self.latency_ms - 1


@dataclass(frozen=True)
class LearnedTable:
    """A table, the students that it was learned from, and those held out to judge it."""

    table: LatencyTable
    students: tuple[MeasuredArch, ...]
    reference_ms: float
    drift: float
    """How much the reference network changed meanwhile (`kdnas.nn.timing.Timing.drift`)."""

    @property
    def held_out(self) -> tuple[MeasuredArch, ...]:
        """The students that the table has not seen."""
        return tuple(student for student in self.students if student.held_out)

    def fit(self) -> TableFit:
        """Return the median and largest relative error and the rank correlations over the held-out students."""
        from scipy.stats import spearmanr

        errors = [abs(student.relative_error) for student in self.held_out]
        measured = [student.latency_ms for student in self.held_out]
        predicted = [student.predicted_ms for student in self.held_out]
        return TableFit(
            learned_from=len(self.students) - len(errors),
            held_out=len(errors),
            median_error=statistics.median(errors),
            max_error=max(errors),
            spearman=float(spearmanr(measured, predicted).statistic),
            kendall=kendall_tau(measured, predicted),
        )


def learn_latency_table(
    space: SearchSpace,
    family: StudentFamily,
    cost: LatencyMs,
    *,
    reference_ms: float | None = None,
    rounds: int = 60,
    samples: int = SAMPLES,
    held_out: int = HELD_OUT,
    seed: int = 0,
    notify: Notify = silent,
) -> LearnedTable:
    """Return the table of `space` on the target of `cost`: students are measured, together, for some minutes.

    `reference_ms` is what the run has found for the reference network (by default it is found now). Raises RunError
    where the space holds too few students.
    """
    pool = _pool(space, family, samples + held_out, seed)
    chosen = designed_sample([family.operators(arch) for arch in pool], samples)
    taken = set(chosen)
    rest = [index for index in range(len(pool)) if index not in taken]  # in the order of drawing: a random sample
    archs = [pool[index] for index in (*chosen, *rest[:held_out])]
    notify(f"learning the latency table: {samples} students, and {held_out} to judge it, {rounds} times each")
    timing = _measured(archs, family, cost, rounds)
    reference_ms = reference_ms or timing.reference_ms
    ratios = [timing.ratios(index) for index in range(len(archs))]
    operators = [family.operators(arch) for arch in archs]
    latency_ms = np.array([middle_mean(values) for values in ratios]) * reference_ms
    spread_ms = np.array([median_and_spread(values)[1] for values in ratios]) * reference_ms
    table = fitted(operators[:samples], latency_ms[:samples])
    students = tuple(
        MeasuredArch(arch, index >= samples, float(latency_ms[index]), float(spread_ms[index]), table.price(parts))
        for index, (arch, parts) in enumerate(zip(archs, operators, strict=True))
    )
    return LearnedTable(table, students, reference_ms, timing.drift)


def learn_tables(
    costs: Mapping[str, CheapCost | MeasuredCost],
    space: SearchSpace,
    family: StudentFamily,
    calibrations: Mapping[str, Calibration],
    *,
    seed: int,
    notify: Notify = silent,
) -> dict[str, Calibration]:
    """Return `calibrations` with a table, and its fit, for each of `costs` that asks for one."""
    learned = dict(calibrations)
    for name, cost in costs.items():
        if isinstance(cost, LatencyMs) and cost.table is not None:
            known = learned[name]
            assert isinstance(known, LatencyCalibration)
            found = learn_latency_table(space, family, cost, reference_ms=known.reference_ms, seed=seed, notify=notify)
            learned[name] = dataclasses.replace(known, table=found.table, verdict=found.fit())
            notify(f"{name} table: {found.fit().words}")
    return learned


class TablePrices:
    """The quantities that a run's tables price. Empty where it has none."""

    def __init__(self, calibrations: Mapping[str, Calibration], family: StudentFamily):
        self._family = family
        self._tables = {
            name: calibration.table
            for name, calibration in calibrations.items()
            if isinstance(calibration, LatencyCalibration) and calibration.table is not None
        }

    @property
    def names(self) -> frozenset[str]:
        """The quantities that need no measurement during the search."""
        return frozenset(self._tables)

    def __call__(self, arch: Arch) -> dict[str, float]:
        """Return the tables' prices of `arch`; microseconds."""
        if not self._tables:
            return {}
        groups = self._family.groups(arch)
        return {name: table.price_groups(groups) for name, table in self._tables.items()}


def _pool(space: SearchSpace, family: StudentFamily, least: int, seed: int) -> list[Arch]:
    """Return distinct archs of `space` in random order: all of a small space."""
    rng = np.random.default_rng(derive_seed(seed, "latency table"))
    pool = dict.fromkeys(arch_of(space, space.random(rng), family) for _ in range(4 * _POOL))
    if len(pool) < least:
        raise RunError(f"a latency table needs {least} students to measure; space {space.name!r} gave {len(pool)}")
    return list(pool)[:_POOL]


def _measured(archs: Sequence[Arch], family: StudentFamily, cost: LatencyMs, rounds: int) -> Any:
    target, inputs = cost.target, given(family.task, cost.target.batch_size)
    with target.ready():
        runs = []
        with torch.random.fork_rng(devices=[]):
            for arch in archs:
                runs.append(target.run(family.build(arch), inputs))
        return interleaved(runs, cost.reference(), rounds=rounds, warmup=2, clock=target.clock)


def designed_sample(students: Sequence[Sequence[Operator]], count: int) -> list[int]:
    """Return the indices of `count` students that together determine their operators' weights (greedy D-optimality).

    Rows are scaled to unit length, as the fit is one of relative errors: a large student counts no more than a small
    one.
    """
    rows, _ = _design(students)
    rows = rows / np.where(rows.any(axis=0), np.abs(rows).max(axis=0), 1.0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    inverse = np.eye(rows.shape[1]) * 1e4
    chosen: list[int] = []
    gains = np.einsum("ij,jk,ik->i", rows, inverse, rows)
    for _ in range(count):
        gains[chosen] = -1.0
        best = int(gains.argmax())
        chosen.append(best)
        step = inverse @ rows[best]
        inverse -= np.outer(step, step) / (1.0 + rows[best] @ step)
        gains = np.einsum("ij,jk,ik->i", rows, inverse, rows)
    return chosen


def fitted(students: Sequence[Sequence[Operator]], latency_ms: Floats) -> LatencyTable:
    """Return the table that explains the `latency_ms` [N] of N students best: non-negative, ridge-regularised."""
    from scipy.optimize import nnls

    rows, columns = _design(students)
    relative = rows / latency_ms[:, None]
    scale = np.where(rows.any(axis=0), relative.mean(axis=0), 1.0)  # then every column is 1 on average
    penalty = _RIDGE * np.sqrt(len(rows)) * np.eye(len(columns))
    solution = nnls(np.vstack([relative / scale, penalty]), np.r_[np.ones(len(rows)), np.zeros(len(columns))])[0]
    weights = [float(weight) for weight in solution / scale]
    by_sort: dict[str, tuple[float, ...]] = {}
    for (sort, _), weight in zip(columns[1:], weights[1:], strict=True):
        by_sort[sort] = (*by_sort.get(sort, ()), weight)
    return LatencyTable(weights[0], by_sort)


def _design(students: Sequence[Sequence[Operator]]) -> tuple[Floats, list[tuple[str, int]]]:
    """Return the summed features of each student [N, D], the constant first, and the (sort, feature) of each column."""
    sorts = sorted({sort_of(operator) for operators in students for operator in operators})
    place = {sort: 1 + FEATURES * index for index, sort in enumerate(sorts)}
    rows = np.zeros((len(students), 1 + FEATURES * len(sorts)))
    rows[:, 0] = 1.0
    for row, operators in zip(rows, students, strict=True):
        for operator in operators:
            start = place[sort_of(operator)]
            row[start : start + FEATURES] += features(operator)
    return rows, [("constant", 0), *((sort, feature) for sort in sorts for feature in range(FEATURES))]
