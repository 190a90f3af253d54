"""The Pareto front of a run, the ways to point at one of its students, and whether there is anything to show.

Where finalists were retrained, only they stand on the front: a mean over seeds and a single brief score are not
comparable, and a brief score flatters whoever was lucky.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar, cast

import numpy as np

from kdnas.core import hypervolume as volumes
from kdnas.core import pick as pick_rules
from kdnas.core.arch import Arch
from kdnas.core.comparison import welch_p_value
from kdnas.core.interval import mean_ci95
from kdnas.core.objective import Quantity, breaches, minimised
from kdnas.core.pareto import non_dominated
from kdnas.core.pick import (
    DEFAULT_PICK,
    PICKS,
    Candidate,
    Near,
    Pick,
    PickError,
    choose,
    parse_pick,
)
from kdnas.core.words import commonest, counted
from kdnas.errors import ConfigError, Problem
from kdnas.record.records import FrontMember, RunRecord, TrialRecord

T = TypeVar("T")

SIGNIFICANCE = 0.05
"""Below this p-value two students of a front count as different in their scores."""
NEAR_WORST = 0.05
"""A lead over the worst score, such as that of always guessing alike, that is no success (`Quantity.lead`)."""
FAR_BELOW_TEACHER = 0.75
"""Of the teacher's lead over the worst score: a student with a smaller share of it is no recommendation."""


def once(work: Callable[[RunRecord], T]) -> Callable[[RunRecord], T]:
    """Have what `work` returns of a run kept with it."""

    @functools.wraps(work)
    def kept(run: RunRecord) -> T:
        key = f"{work.__module__}.{work.__qualname__}"
        if key not in run.worked_out:
            run.worked_out[key] = work(run)
        return cast(T, run.worked_out[key])

    return kept


def measured_values(trial: TrialRecord) -> dict[str, float]:
    """Return everything known of `trial`; a measurement overrides an estimate of the same name."""
    return {**trial.values, **{name: float(taken.value) for name, taken in trial.measurements.items()}}


def as_member(run: RunRecord, trial: TrialRecord) -> FrontMember:
    """Return `trial` with its score as the mean over its repeats, or as the search scored it where it has none."""
    values = measured_values(trial)
    if not trial.repeats:
        return FrontMember(trial, values, None)
    score, score_ci95 = mean_ci95([repeat.score for repeat in trial.repeats])
    tested = [repeat.test_score for repeat in trial.repeats if repeat.test_score is not None]
    test_score, test_ci95 = mean_ci95(tested) if tested else (None, None)
    named = [name for name in trial.repeats[0].further if all(name in repeat.further for repeat in trial.repeats)]
    further = {name: mean_ci95([repeat.further[name] for repeat in trial.repeats]) for name in named}
    known = {one.name: further[one.name][0] for one in run.objectives if one.name in further}
    tasks = trial.repeats[0].by_task
    known |= {name: mean_ci95([repeat.by_task[name] for repeat in trial.repeats])[0] for name in tasks}
    return FrontMember(trial, {**values, **known, run.score.name: score}, score_ci95, test_score, test_ci95, further)


def beside(arch: Arch, finalists: Iterable[TrialRecord]) -> tuple[Arch, ...]:
    """Return those that learn with a student of `arch` where the front learns together: none if it is alone."""
    others = {trial.arch.arch_id: trial.arch for trial in finalists if trial.arch != arch}
    return tuple(others[name] for name in sorted(others))


@once
def comparable(run: RunRecord) -> tuple[TrialRecord, ...]:
    """Return the complete trials of the highest fidelity that has any: scores of different ones do not compare."""
    complete = [trial for trial in run.trials if trial.state == "complete"]
    highest = max((trial.fidelity.amount for trial in complete), default=0.0)
    return tuple(trial for trial in complete if trial.fidelity.amount == highest)


@once
def candidates(run: RunRecord) -> tuple[FrontMember, ...]:
    """Return the students the front is drawn from: retrained ones where there are any, else the `comparable` ones.

    Every one of them has a finite value for each objective and meets each limit with its measured value. Those that
    miss a goal are left out once anybody reaches it.
    """
    pool = [trial for trial in run.trials if trial.state == "complete" and trial.repeats] or comparable(run)
    members = [as_member(run, trial) for trial in pool]
    sound = tuple(
        member
        for member in members
        if all(math.isfinite(member.values.get(objective.name, math.nan)) for objective in run.objectives)
        and not breaches(member.values, run.limits)
    )
    return tuple(member for member in sound if not breaches(member.values, run.goals)) or sound


@once
def front(run: RunRecord) -> tuple[FrontMember, ...]:
    """Return the Pareto front of `run`, mutually non-dominated, sorted by the first cheap objective."""
    members = candidates(run)
    mask = non_dominated(minimised([member.values for member in members], run.objectives))
    axis = _sort_axis(run.objectives)
    kept = [member for member, on_front in zip(members, mask, strict=True) if on_front]
    return tuple(sorted(kept, key=lambda member: (axis.minimised(member.values[axis.name]), member.trial.number)))


def knee_of(run: RunRecord, members: Sequence[FrontMember]) -> FrontMember:
    """Return the member of a front that gives most for least. ValueError where no knee is: below three members."""
    return members[choose(Pick("knee"), _as_candidates(members), run.objectives, run.score)]


def best_of(run: RunRecord, members: Sequence[FrontMember]) -> FrontMember:
    """Return the member with the best score; of equals the first. ValueError on an empty front."""
    return members[pick_rules.best_of(_as_candidates(members), run.score)]


def is_near_worst(run: RunRecord, score: float) -> bool:
    """Return whether `score` is hardly better than the worst, by at most `NEAR_WORST`, where that is known."""
    return run.worst is not None and run.score.lead(score, run.worst) <= NEAR_WORST


def is_flat(run: RunRecord, gain: float) -> bool:
    """Return whether a curve counts as flat whose score a doubling of the training improves by `gain`."""
    return gain < run.score.point


def indistinguishable(members: Sequence[FrontMember]) -> dict[int, tuple[FrontMember, ...] | None]:
    """Return, by trial number, the other members whose mean score over the retrainings does not differ from its own.

    By Welch's t-test at 5 %, each pair by itself: intervals that overlap would hide differences that are there. None
    for a member that was not retrained at least twice, which cannot be tested.
    """
    repeats = {member.trial.number: [repeat.score for repeat in member.trial.repeats] for member in members}
    alike: dict[int, tuple[FrontMember, ...] | None] = {}
    for member in members:
        own = repeats[member.trial.number]
        tests = [(other, welch_p_value(own, repeats[other.trial.number])) for other in members if len(own) >= 2]
        found = tuple(other for other, p in tests if other is not member and p is not None and p >= SIGNIFICANCE)
        alike[member.trial.number] = None if len(own) < 2 else found
    return alike


@once
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
        if trial.number in counting and not breaches(values, run.limits):
            point = minimised([values], run.objectives)
            if not (points <= point).all(axis=1).any():  # a student that is no better changes nothing
                volume += volumes.gain(points, point[0], reference)
                points = np.vstack([points[~(point <= points).all(axis=1)], point])
        curve.append((trial.number, seconds, volume))
    return curve


def pick(run: RunRecord, text: str) -> FrontMember:
    """Return the student that `text` names (`kdnas.core.pick.PICKS`).

    An arch_id, or a unique beginning of one, may be that of any complete trial; everything else chooses from the front.
    Raises ConfigError with what there is, and for bounds that no student meets the nearest miss.
    """
    members = front(run)
    if not members:
        states = ", ".join(f"{count} {state}" for state, count in sorted(Counter(t.state for t in run.trials).items()))
        raise ConfigError(f"{run.folder} has no student to pick yet (trials: {states or 'none'})")
    try:
        wanted = parse_pick(text, run.score)
        if wanted.arch_id:
            return _by_arch_id(run, members, wanted.arch_id)
        return members[choose(wanted, _as_candidates(members), run.objectives, run.score, run.standard)]
    except PickError as error:
        raise ConfigError(Problem("pick", str(error), error.allowed)) from None


@dataclass(frozen=True)
class Recommendation:
    """The student that kdnas recommends, and in words how it was chosen: "the cheapest within 1 point of the best"."""

    member: FrontMember
    words: str


@once
def recommended(run: RunRecord) -> Recommendation | None:
    """Return the student that the default pick means; None where there is no front."""
    members = front(run)
    if not members:
        return None
    candidates, score = _as_candidates(members), run.score
    best = pick_rules.best_of(candidates, score)
    chosen = choose(parse_pick(DEFAULT_PICK, score), candidates, run.objectives, score)
    if chosen == best:
        words = "the best"
    else:
        points = pick_rules.margin(Near("best"), candidates[best], score) / score.point
        why = "its 95 % interval" if points < pick_rules.MOST_POINTS else "its 95 % interval, which is wider"
        distance = "1 point" if points <= 1 else f"{points:.2g} points ({why})"
        words = f"the cheapest within {distance} of the best"
    return Recommendation(members[chosen], words)


def picked_or_recommended(run: RunRecord) -> FrontMember | None:
    """Return the student that the study's `export.pick` means, where nobody does the recommended one."""
    with contextlib.suppress(ConfigError):
        return pick(run, run.config.export.pick)
    chosen = recommended(run)
    return None if chosen is None else chosen.member


def rise(run: RunRecord, member: FrontMember) -> float | None:
    """Return by how much `member`'s score improved with each doubling of its training, from its search score on.

    This measures how far from flat its curve is. A schedule that decays to a learning rate of 0 looks flat at its end,
    however short it was. None where `doublings` is, and where the search score is hardly better than guessing: the
    curve had not begun there.
    """
    doubled, score = doublings(member), run.score
    if doubled is None or score.name not in member.trial.values:
        return None
    first = member.trial.values[score.name]
    return None if is_near_worst(run, first) else score.gain(member.values[score.name], first) / doubled


def doublings(member: FrontMember) -> float | None:
    """Return log2 of how much longer `member`'s retrainings were than the training of its search score.

    None where they were hardly longer, or had another start or resolution.
    """
    if not member.trial.repeats:
        return None
    first, final = member.trial.fidelity, member.trial.repeats[0].fidelity
    if first.start != final.start or first.resolution_fraction != final.resolution_fraction or not first.amount:
        return None
    doubled = math.log2(final.amount / first.amount)
    return doubled if doubled >= 0.5 else None


def doubts(run: RunRecord, member: FrontMember) -> list[str]:
    """Return why `member` is no student to recommend, one sentence each; empty where nothing speaks against it."""
    found = []
    if is_near_worst(run, member.values[run.score.name]):
        found.append("it is hardly better than guessing")
    elif (kept := kept_of_teacher(run, member)) is not None and kept < FAR_BELOW_TEACHER:
        found.append(f"it is far below its teacher: it keeps {100 * kept:.0f} % of the teacher's lead over guessing")
    if missed := breaches(member.values, run.goals):
        found.append(f"it misses {', '.join(missed)}")
    return found


def kept_of_teacher(run: RunRecord, member: FrontMember) -> float | None:
    """Return the share of the teacher's lead over the worst score that `member` has; None where it is not known."""
    value = member.values.get(run.score.name)
    if run.teacher is None or run.worst is None or value is None:
        return None
    lead = run.score.lead(run.teacher.score, run.worst)
    return run.score.lead(value, run.worst) / lead if lead > 0 else None


def _as_candidates(members: Sequence[FrontMember]) -> list[Candidate]:
    return [Candidate(member.trial.arch.arch_id, member.values, member.score_ci95) for member in members]


def _by_arch_id(run: RunRecord, members: Sequence[FrontMember], wanted: str) -> FrontMember:
    """Return the student whose arch_id begins with `wanted`. Raises ConfigError, PickError."""
    complete = [as_member(run, trial) for trial in run.trials if trial.state == "complete"]
    for pool in (members, complete):
        named = [member for member in pool if member.trial.arch.arch_id.startswith(wanted)]
        ids = sorted({member.trial.arch.arch_id for member in named})
        if not ids:
            continue
        if len(ids) > 1:
            raise ConfigError(Problem("pick", f"{wanted!r} begins more than one arch_id", ", ".join(ids)))
        longest = max(member.trial.fidelity.amount for member in named)
        chosen = best_of(run, [member for member in named if member.trial.fidelity.amount == longest])
        broken = breaches(chosen.values, run.limits)
        if broken:
            raise ConfigError(Problem("pick", f"student {ids[0]} breaks {', '.join(broken)}"))
        return chosen
    shown = ", ".join(member.trial.arch.arch_id for member in members)
    raise PickError(f"{wanted!r} names no complete student of this run", f"{PICKS}; on the front: {shown}")


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


def failure(run: RunRecord) -> str:
    """Return why `run` has failed, empty where it has not: none of its trials, or of its retrainings, gave a score.

    Trials that a constraint refused after measuring gave none either.
    """
    if not any(trial.state == "complete" for trial in run.trials):
        lost = [trial for trial in run.trials if trial.state in ("failed", "infeasible")]
        if not lost:
            return ""
        what = f"no student was scored: {counted(len(lost), 'trial')} failed or broke a constraint"
        go_on = "they count as spent: what is mended goes on with a larger budget, or in another --out"
        return f"{what}{most_often(trial.reason for trial in lost)}; {go_on}"
    failed = run.failed_repeats
    if failed and not any(trial.repeats for trial in run.trials):
        reasons = (repeat.reason for repeat in failed for _ in range(repeat.attempts))
        return f"every retraining of the front failed{most_often(reasons)}; the front shown is of brief scores alone"
    return ""


def most_often(reasons: Iterable[str]) -> str:
    """Return the commonest of `reasons` in words that end a sentence, and its share of them."""
    given = [reason or "no reason was given" for reason in reasons]
    reason, times = commonest(given)
    return f", {'all' if times == len(given) else 'most'} for this reason ({times} of {len(given)}): {reason}"
