"""Which students of a search are worth a retraining.

Costs count by their logarithm here: on a linear axis the expensive end hides what the cheap end adds, and the other way
round.
"""

from __future__ import annotations

import math

import numpy as np

from kdnas.controller.promotion import student_key
from kdnas.core.improvement import free_boxes, improvement
from kdnas.core.objective import breaches, minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.promotion import lifted
from kdnas.record.front import comparable, measured_values
from kdnas.record.records import RunRecord, TrialRecord

_BEYOND = 0.1
"""Of the front's range: how far past its most expensive member the reference is put for the choice of finalists."""
_FEWEST_CHANGES = 3
"""Students with a score at two rungs that it takes to say how uncertain a foretold score is."""


def finalists(run: RunRecord) -> tuple[TrialRecord, ...]:
    """Return the front of the search's scores of the highest fidelity, within the limits, in trial order.

    Of a front larger than `final.max_students` the best score stays, then always who adds most hypervolume to those
    chosen. A smaller one is filled with students of lower rungs that may belong to it: whose score, foretold from the
    typical change between rungs and given the benefit of its spread, nobody is known to beat.
    """
    most = run.config.final.max_students
    sound = [trial for trial in comparable(run) if _is_sound(trial, run)]
    values = _values(sound, run)
    kept = non_dominated(values)
    front = [trial for trial, on_front in zip(sound, kept, strict=True) if on_front]
    chosen = [front[place] for place in _largest(values[kept], [], most, run)]
    if front and len(chosen) < most and run.config.rungs:
        lower, foretold = _hopeful(run, sound)
        known = np.concatenate([_values(chosen, run), foretold])
        places = _largest(known, list(range(len(chosen))), most, run)
        chosen += [lower[place - len(chosen)] for place in places[len(chosen) :]]
    return tuple(sorted(chosen, key=lambda trial: trial.number))


def _largest(values: np.ndarray, chosen: list[int], most: int, run: RunRecord) -> list[int]:
    """Return `chosen` and further rows of `values` [N, M], up to `most`: the best score, then the largest gains.

    Of equal gains the better score.
    """
    scale = _logarithmic(values, run)
    reference = _reference(scale, run)
    score = run.objectives.index(run.score)
    picked = list(chosen)
    while len(picked) < min(most, len(values)):
        rest = [place for place in range(len(values)) if place not in picked]
        gains = improvement(scale[rest], free_boxes(scale[picked], reference)) if picked else np.zeros(len(rest))
        picked.append(rest[int(np.lexsort((values[rest, score], -gains))[0])])
    return picked


def _hopeful(run: RunRecord, above: list[TrialRecord]) -> tuple[list[TrialRecord], np.ndarray]:
    """Return students that stayed below the rung of `above` and may belong to its front, with their foretold scores."""
    fidelities = run.config.fidelities
    top = max((fidelities.index(trial.fidelity) for trial in above), default=0)
    students: dict[str, TrialRecord] = {}
    scores: dict[str, np.ndarray] = {}
    for trial in run.trials:
        if trial.state == "complete" and trial.fidelity in fidelities[: top + 1] and _is_sound(trial, run):
            key, rung = student_key(trial.arch, trial.tuned), fidelities.index(trial.fidelity)
            scores.setdefault(key, np.full((top + 1, len(run.objectives)), np.nan))[rung] = _values([trial], run)[0]
            if key not in students or students[key].fidelity.amount < trial.fidelity.amount:
                students[key] = trial
    table = np.stack([scores[key] for key in students]) if students else np.empty((0, top + 1, len(run.objectives)))
    foretold = lifted(table)
    hopeful = []
    for place, trial in enumerate(students.values()):
        if trial.fidelity == fidelities[top]:
            continue
        others = np.delete(foretold, place, axis=0)
        best = foretold[place] - _spread(table, fidelities.index(trial.fidelity))
        beaten = np.all(others <= best, axis=1) & np.any(others < best, axis=1)
        if not beaten.any():
            hopeful.append(place)
    everyone = list(students.values())
    return [everyone[place] for place in hopeful], foretold[hopeful].reshape(-1, len(run.objectives))


def _spread(table: np.ndarray, rung: int) -> np.ndarray:
    """Return how uncertain [M] a score foretold from `rung` is, of `table` [N, R, M]; infinite where too few tell."""
    changes = [table[:, above] - table[:, above - 1] for above in range(rung + 1, table.shape[1])]
    known = [change[~np.isnan(change).any(axis=1)] for change in changes]
    if any(len(change) < _FEWEST_CHANGES for change in known):
        return np.full(table.shape[2], np.inf)
    return np.sqrt(sum(change.var(axis=0) for change in known))


def _is_sound(trial: TrialRecord, run: RunRecord) -> bool:
    values = measured_values(trial)
    known = all(math.isfinite(values.get(objective.name, math.nan)) for objective in run.objectives)
    return known and not breaches(values, run.limits)


def _values(trials: list[TrialRecord], run: RunRecord) -> np.ndarray:
    return minimised([measured_values(trial) for trial in trials], run.objectives)


def _logarithmic(values: np.ndarray, run: RunRecord) -> np.ndarray:
    """Return `values` [N, M] with the logarithm of every cost that is minimised and above 0."""
    scaled = values.copy()
    for column, objective in enumerate(run.objectives):
        if objective.kind != "trained" and len(values) and values[:, column].min() > 0:
            scaled[:, column] = np.log(values[:, column])
    return scaled


def _reference(front: np.ndarray, run: RunRecord) -> np.ndarray:
    """Return the point [M] that gains are measured from: the score that is worth nothing, and past the front's costs.

    The run's own reference cost is a bound or a sampled price, which the most accurate student may well have: below it
    that one would add nothing.
    """
    chance = minimised([run.reference_point], run.objectives)[0]
    if not len(front):
        return chance
    worst = front.max(axis=0)
    span = worst - front.min(axis=0)
    past = worst + _BEYOND * np.where(span > 0, span, 1.0)
    is_cost = np.array([objective.kind != "trained" for objective in run.objectives])
    return np.where(is_cost, past, chance)
