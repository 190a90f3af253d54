"""A study's trials as arrays. N trials, M objectives (minimised)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from kdnas.core.fidelity import Fidelity
from kdnas.core.objective import Quantity
from kdnas.samplers._hvi_encoding import Encoding


@dataclass(frozen=True)
class History:
    """What the ended and the running trials say. Values that are not known are NaN."""

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
    told = [trial for trial in trials if names <= trial.params.keys() and not _void(trial)]
    signs = np.array([-1.0 if objective.direction == "maximize" else 1.0 for objective in objectives])
    values = np.array([_values(trial, objectives) for trial in told]).reshape(len(told), len(objectives))
    bounds = sorted({name for trial in told for name, violation in trial.constraints.items() if violation > 0})
    violations = [[trial.constraints.get(name, np.nan) for name in bounds] for trial in told]
    failures = np.array([_failure(trial) for trial in told])
    missed = np.array(violations, dtype=float).reshape(len(told), len(bounds))
    if np.any(failures > 0):
        missed = np.column_stack([missed, failures])
    complete = np.array([trial.state == TrialState.COMPLETE for trial in told], dtype=bool)
    return History(
        encoding.codes([trial.params for trial in told]),
        np.array([_rung(trial, fidelities) for trial in told], dtype=int),
        signs * values,
        np.array([trial.state == TrialState.RUNNING for trial in told], dtype=bool),
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
    """Return the objectives' values: an infeasible trial knows those that were measured before it was refused."""
    if trial.state == TrialState.COMPLETE:
        return [float(value) for value in trial.values or ()]
    result: Mapping[str, Any] = trial.user_attrs.get("result") or {}
    return [float(result.get("values", {}).get(objective.name, np.nan)) for objective in objectives]


def _rung(trial: FrozenTrial, fidelities: Sequence[Fidelity]) -> int:
    """Return the rung a trial was scored at; the highest where nothing is said, the lowest for one that just starts."""
    if not fidelities:
        return 0
    said = trial.user_attrs.get("fidelity")
    if said is None:
        return 0 if trial.state == TrialState.RUNNING else len(fidelities) - 1
    amount = Fidelity(**said).amount
    return int(np.argmin([abs(rung.amount - amount) for rung in fidelities]))
