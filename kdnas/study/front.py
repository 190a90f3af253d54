"""The Pareto front of a run, and the ways to point at one of its students.

Where finalists were retrained, only they stand on the front: a mean over seeds and a single brief score are not
comparable, and a brief score flatters whoever was lucky.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from kdnas.core import hypervolume as volumes
from kdnas.core.comparison import welch_p_value
from kdnas.core.interval import mean_ci95
from kdnas.core.objective import ACCURACY, Constraint, Quantity, breaches, minimised, parse_constraint
from kdnas.core.pareto import knee, non_dominated
from kdnas.errors import ConfigError, Problem
from kdnas.study.records import FrontMember, RunRecord, TrialRecord

SHORTEST_PREFIX = 4
"""Hexadecimal digits of an arch_id that are enough to name a student."""
SIGNIFICANCE = 0.05
"""Below this p-value two students of a front count as different in accuracy."""
NEAR_CHANCE = 0.05
"""An accuracy so little above that of always guessing alike is no success."""


def measured_values(trial: TrialRecord) -> dict[str, float]:
    """Return everything known of `trial`; a measurement overrides an estimate of the same name."""
    return {**trial.values, **{name: float(taken.value) for name, taken in trial.measurements.items()}}


def as_member(trial: TrialRecord) -> FrontMember:
    """Return `trial` with its accuracy as the mean over its repeats, or as the search scored it where it has none."""
    values = measured_values(trial)
    if not trial.repeats:
        return FrontMember(trial, values, None)
    accuracy, accuracy_ci95 = mean_ci95([repeat.accuracy for repeat in trial.repeats])
    tested = [repeat.test_accuracy for repeat in trial.repeats if repeat.test_accuracy is not None]
    test_accuracy, test_ci95 = mean_ci95(tested) if tested else (None, None)
    return FrontMember(trial, {**values, "accuracy": accuracy}, accuracy_ci95, test_accuracy, test_ci95)


def comparable(run: RunRecord) -> tuple[TrialRecord, ...]:
    """Return the complete trials of the highest fidelity that has any: scores of different ones do not compare."""
    complete = [trial for trial in run.trials if trial.state == "complete"]
    highest = max((trial.fidelity.amount for trial in complete), default=0.0)
    return tuple(trial for trial in complete if trial.fidelity.amount == highest)


def candidates(run: RunRecord) -> tuple[FrontMember, ...]:
    """Return the students the front is drawn from: retrained ones where there are any, else the `comparable` ones.

    Every one of them has a finite value for each objective and meets each constraint with its measured value.
    """
    pool = [trial for trial in run.trials if trial.state == "complete" and trial.repeats] or comparable(run)
    members = [as_member(trial) for trial in pool]
    return tuple(
        member
        for member in members
        if all(math.isfinite(member.values.get(objective.name, math.nan)) for objective in run.objectives)
        and not breaches(member.values, run.constraints)
    )


def front(run: RunRecord) -> tuple[FrontMember, ...]:
    """Return the Pareto front of `run`, mutually non-dominated, sorted by the first cheap objective."""
    members = candidates(run)
    mask = non_dominated(minimised([member.values for member in members], run.objectives))
    axis = _sort_axis(run.objectives)
    sign = -1.0 if axis.direction == "maximize" else 1.0
    kept = [member for member, on_front in zip(members, mask, strict=True) if on_front]
    return tuple(sorted(kept, key=lambda member: (sign * member.values[axis.name], member.trial.number)))


def knee_of(members: Sequence[FrontMember], objectives: Sequence[Quantity]) -> FrontMember:
    """Return the member of a front that gives most for least (`kdnas.core.pareto.knee`). ValueError on an empty one."""
    return members[knee(minimised([member.values for member in members], objectives))]


def best_of(members: Sequence[FrontMember]) -> FrontMember:
    """Return the most accurate member; of equals the first. ValueError on an empty front."""
    return max(members, key=_accuracy)


def is_near_chance(run: RunRecord, member: FrontMember) -> bool:
    """Return whether `member` is hardly better than guessing: at most `NEAR_CHANCE` above it, where that is known."""
    guess = run.reference_point.get(ACCURACY.name)
    return guess is not None and member.values[ACCURACY.name] <= guess + NEAR_CHANCE


def indistinguishable(members: Sequence[FrontMember]) -> dict[int, tuple[FrontMember, ...] | None]:
    """Return, by trial number, the other members whose mean accuracy over the retrainings does not differ from its own.

    By Welch's t-test at 5 %, each pair by itself: intervals that overlap would hide differences that are there. None
    for a member that was not retrained at least twice, which cannot be tested.
    """
    repeats = {member.trial.number: [repeat.accuracy for repeat in member.trial.repeats] for member in members}
    alike: dict[int, tuple[FrontMember, ...] | None] = {}
    for member in members:
        number = member.trial.number
        tests = [(other, welch_p_value(repeats[number], repeats[other.trial.number])) for other in members]
        alike[number] = (
            None
            if len(repeats[number]) < 2
            else tuple(other for other, p in tests if other is not member and p is not None and p >= SIGNIFICANCE)
        )
    return alike


def hypervolume(run: RunRecord) -> float | None:
    """Return the hypervolume of `front(run)` below the run's reference point; None while that is not known."""
    reference = _reference(run)
    if reference is None:
        return None
    return volumes.hypervolume(minimised([member.values for member in front(run)], run.objectives), reference)


def hypervolume_over_time(
    run: RunRecord, trials: Iterable[TrialRecord] | None = None, *, steps: Iterable[TrialRecord] | None = None
) -> list[tuple[int, float, float]]:
    """Return (trial number, seconds since the first trial began, hypervolume) after each complete trial, in end order.

    Made of the search's own scores: those of `trials`, by default of one fidelity (`comparable`), so that its points
    can be compared. With `steps` there is a point after each of these as well, at which the volume stays as it was.
    Retraining does not enter. What training a supernet took before is in the seconds. Empty while the reference point
    is not known.
    """
    reference = _reference(run)
    if reference is None:
        return []
    counted = tuple(comparable(run) if trials is None else trials)
    counting = {trial.number for trial in counted}
    others = [trial for trial in steps or () if trial.number not in counting]
    measured = [(trial, measured_values(trial)) for trial in (*counted, *others)]
    scored = [
        (trial, values)
        for trial, values in measured
        if all(math.isfinite(values.get(objective.name, math.nan)) for objective in run.objectives)
    ]
    begun = min((trial.started for trial in run.trials if trial.started is not None), default=None)
    scored.sort(key=lambda pair: (_timestamp(pair[0].ended), pair[0].number))
    points = np.empty((0, len(run.objectives)))
    curve: list[tuple[int, float, float]] = []
    before = run.supernet.train_seconds if run.supernet else 0.0
    seconds, volume = before, 0.0
    for trial, values in scored:
        if begun is not None and trial.ended is not None:
            seconds = max(seconds, before + (trial.ended - begun).total_seconds())
        if trial.number in counting and not breaches(values, run.constraints):
            points = np.vstack([points, minimised([values], run.objectives)])
            mask = non_dominated(points)
            points = points[mask]
            # The volume moves only when the newest point, the last row, is on the front.
            volume = volumes.hypervolume(points, reference) if mask[-1] else volume
        curve.append((trial.number, seconds, volume))
    return curve


def pick(run: RunRecord, text: str) -> FrontMember:
    """Return the student that `text` names.

    `knee`; `best` (the most accurate of the front); an arch_id or a unique beginning of one, of the front or of any
    complete trial; or bounds joined by commas, such as `macs<=10e6,latency_ms<=2`: the most accurate front member
    within them. Raises ConfigError saying what there is, and for bounds nobody meets the nearest miss.
    """
    members = front(run)
    wanted = text.strip()
    if not members:
        states = ", ".join(f"{count} {state}" for state, count in sorted(Counter(t.state for t in run.trials).items()))
        raise ConfigError(f"{run.folder} has no student to pick yet (trials: {states or 'none'})")
    if wanted == "knee":
        return knee_of(members, run.objectives)
    if wanted == "best":
        return best_of(members)
    if "<" in wanted or ">" in wanted or "=" in wanted:
        return _within(members, wanted)
    return _by_arch_id(run, members, wanted)


def is_pick(text: str) -> bool:
    """Return whether `text` is spelled as `pick` takes it; whether it names a student only a run can tell."""
    wanted = text.strip()
    if wanted in ("knee", "best") or re.fullmatch(rf"[0-9a-fA-F]{{{SHORTEST_PREFIX},12}}", wanted):
        return True
    try:
        return all(parse_constraint(part) for part in wanted.split(","))
    except ValueError:
        return False


@dataclass(frozen=True)
class _Miss:
    member: FrontMember
    relative: float


def _within(members: Sequence[FrontMember], text: str) -> FrontMember:
    bounds = _parse_bounds(text, sorted(set().union(*(member.values for member in members))))
    fitting = [member for member in members if not breaches(member.values, bounds)]
    if fitting:
        return best_of(fitting)
    misses = [_Miss(member, _relative_miss(member.values, bounds)) for member in members]
    nearest = min(misses, key=lambda miss: miss.relative).member
    values = ", ".join(f"{bound.name} {nearest.values.get(bound.name, math.nan):.6g}" for bound in bounds)
    wanted = ", ".join(str(bound) for bound in bounds)
    raise ConfigError(
        f"no student of the front meets {wanted}; the nearest is {nearest.trial.arch.arch_id} with {values}"
    )


def _parse_bounds(text: str, known: Sequence[str]) -> list[Constraint]:
    bounds, problems = [], []
    for part in text.split(","):
        try:
            bound = parse_constraint(part)
        except ValueError as error:
            problems.append(Problem("pick", str(error)))
            continue
        if bound.name not in known:
            problems.append(Problem("pick", f"no student's {bound.name!r} is known", ", ".join(known)))
        bounds.append(bound)
    if problems:
        raise ConfigError(problems)
    return bounds


def _relative_miss(values: Mapping[str, float], bounds: Sequence[Constraint]) -> float:
    misses = []
    for bound in bounds:
        value = values.get(bound.name, math.inf)
        misses.append(max(bound.violation(value), 0.0) / (abs(bound.bound) or 1.0) if math.isfinite(value) else 1e9)
    return sum(misses)


def _by_arch_id(run: RunRecord, members: Sequence[FrontMember], wanted: str) -> FrontMember:
    complete = [as_member(trial) for trial in run.trials if trial.state == "complete"]
    for pool in (members, complete):
        named = [member for member in pool if member.trial.arch.arch_id.startswith(wanted.lower())]
        ids = sorted({member.trial.arch.arch_id for member in named})
        if len(wanted) < SHORTEST_PREFIX or not ids:
            continue
        if len(ids) > 1:
            raise ConfigError(Problem("pick", f"{wanted!r} begins more than one arch_id", ", ".join(ids)))
        longest = max(member.trial.fidelity.amount for member in named)
        chosen = best_of([member for member in named if member.trial.fidelity.amount == longest])
        broken = breaches(chosen.values, run.constraints)
        if broken:
            raise ConfigError(Problem("pick", f"student {ids[0]} breaks {', '.join(broken)}"))
        return chosen
    shown = ", ".join(member.trial.arch.arch_id for member in members)
    allowed = f"knee, best, bounds such as 'macs<=10e6', an arch_id of a complete trial; on the front: {shown}"
    raise ConfigError(Problem("pick", f"{wanted!r} names no complete student of this run", allowed))


def _accuracy(member: FrontMember) -> float:
    return member.values.get("accuracy", -math.inf)


def _sort_axis(objectives: Sequence[Quantity]) -> Quantity:
    for kind in ("cheap", "measured"):
        for objective in objectives:
            if objective.kind == kind:
                return objective
    return objectives[0]


def _reference(run: RunRecord) -> np.ndarray | None:
    if any(objective.name not in run.reference_point for objective in run.objectives):
        return None
    return minimised([run.reference_point], run.objectives)[0]


def _timestamp(moment: datetime | None) -> float:
    return math.inf if moment is None else moment.timestamp()
