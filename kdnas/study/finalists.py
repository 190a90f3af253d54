"""Which students of a search are worth a retraining."""

from __future__ import annotations

import math

import numpy as np

from kdnas.core.hypervolume import contributions
from kdnas.core.objective import breaches, minimised
from kdnas.core.pareto import non_dominated
from kdnas.study.front import comparable, measured_values
from kdnas.study.records import RunRecord, TrialRecord

_BEYOND = 0.1
"""Of the front's range: how far past its most expensive member the reference is put for the choice of finalists."""


def finalists(run: RunRecord) -> tuple[TrialRecord, ...]:
    """Return the front of the search's scores of the highest fidelity, within the constraints, in trial order.

    Of a front larger than `final.max_students`, the members with the largest hypervolume contributions; of equals the
    more accurate.
    """
    sound = [trial for trial in comparable(run) if _is_sound(trial, run)]
    values = minimised([measured_values(trial) for trial in sound], run.objectives)
    kept = non_dominated(values)
    front = [trial for trial, on_front in zip(sound, kept, strict=True) if on_front]
    if len(front) <= run.config.final.max_students:
        return tuple(front)
    gains = contributions(values[kept], _selection_reference(values[kept], run))
    order = sorted(range(len(front)), key=lambda index: (-gains[index], -front[index].values["accuracy"]))
    return tuple(front[index] for index in sorted(order[: run.config.final.max_students]))


def _is_sound(trial: TrialRecord, run: RunRecord) -> bool:
    values = measured_values(trial)
    known = all(math.isfinite(values.get(objective.name, math.nan)) for objective in run.objectives)
    return known and not breaches(values, run.limits)


def _selection_reference(front: np.ndarray, run: RunRecord) -> np.ndarray:
    """Return the run's reference point [M], put past the front in every cost that the front reaches.

    The reference cost is the bound or a sampled price, which the most accurate student may well have: below the run's
    own point it would add nothing and be the first to go. The reference accuracy stays: chance is worth nothing.
    """
    reference = minimised([run.reference_point], run.objectives)[0]
    worst = front.max(axis=0)
    span = worst - front.min(axis=0)
    is_cost = np.array([objective.kind != "trained" for objective in run.objectives])
    past = worst + _BEYOND * np.where(span > 0, span, 1.0)
    return np.where(is_cost & (worst >= reference), past, reference)
