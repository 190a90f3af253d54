"""What a search varied, student by student, and which of it is stuck at an end of the range that it was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdnas.core.arch import Scalar, normalise_scalar
from kdnas.core.space import SearchSpace
from kdnas.errors import RunFolderError
from kdnas.record.front import comparable, measured_values
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.record.run_folder import recorded_space
from kdnas.report.wording import number

FEWEST_BEST = 3
_BEST_SHARE = 0.2
"""Of the scored students: those that count as the best ones."""
_END_SHARE, _TIP_SHARE = 0.25, 0.1
"""Of a range of real numbers: what counts as one of its ends for the best students, and for the very best."""
_MET_BY_CHANCE = 0.05
"""So likely may the best students be to meet at one end of what was searched evenly."""
_BETTER_BY_CHANCE = 0.01
"""So likely may students at that end be to score so much better than the others do: every setting is looked at."""


@dataclass(frozen=True)
class Searched:
    """A choice of the space or a tuned training setting, as some trials have it."""

    name: str
    values: tuple[Scalar | None, ...]
    """One a trial; None where the student does not have it, such as the width of a stage that is left out."""
    domain: tuple[Scalar, ...]
    """What the study offers, in its order; of a tuned setting the two ends of the range."""
    tuned: bool = False
    log: bool = False

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, which have an order."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.domain)

    def is_at(self, value: Scalar | None, end: float, share: float) -> bool:
        """Whether a number is at `end`, the low or high one of the domain; of a range, within `share` of its length."""
        if not self.tuned:
            return value == end
        low, high, at, border = (math.log(v) if self.log else v for v in map(float, (*self.domain, value, end)))  # type: ignore[arg-type]
        return abs(at - border) <= share * (high - low)


def searched(run: RunRecord, trials: Sequence[TrialRecord]) -> list[Searched]:
    """Return what truly varies among `trials`: choices in the order of the space, then tuned settings.

    A choice that takes one value wherever a student has it did not vary, however many students lack it: that they do is
    another choice's doing.
    """
    space = _space(run)
    rows = [_assignment(trial, space) for trial in trials]
    depths = {name for row in rows for name in row if name.endswith(".depth")}
    rows = [{**dict.fromkeys(depths, 0), **row} for row in rows]  # an arch does not speak of a stage that it lacks
    order = [choice.name for choice in space.choices] if space is not None else []
    names = dict.fromkeys([*order, *sorted({name for row in rows for name in row})])
    stated = {choice.name: choice.values for choice in space.choices} if space is not None else {}
    found = []
    for name in names:
        values = tuple(row.get(name) for row in rows)
        known = {value for value in values if value is not None}
        if len(known) > 1:
            domain = stated.get(name, ())
            found.append(Searched(name, values, domain if known <= set(domain) else _in_order(known)))
    return found + _tuned(run, trials)


def stuck_at_bounds(run: RunRecord) -> list[str]:
    """Return in words which choices and tuned settings the most accurate students have at an end of their range.

    Said where at least four in five of the best fifth are there, the very best among them, where an even search would
    leave so many there in less than one of twenty cases, and where students there score better than the others (Mann
    and Whitney's test, 1 %). A depth of 0 is the end of what there is, not of what was offered.
    """
    trials = [t for t in comparable(run) if math.isfinite(measured_values(t).get("accuracy", math.nan))]
    if len(trials) < 2 * FEWEST_BEST:
        return []
    accuracies = [measured_values(trial)["accuracy"] for trial in trials]
    best = sorted(range(len(trials)), key=lambda index: -accuracies[index])
    best = best[: max(FEWEST_BEST, round(_BEST_SHARE * len(trials)))]
    sentences = [_stuck(setting, accuracies, best) for setting in searched(run, trials) if setting.numeric]
    return [sentence for sentence in sentences if sentence]


def _stuck(setting: Searched, accuracies: Sequence[float], best: Sequence[int]) -> str:
    numbers = [float(value) for value in setting.domain]
    low, high = min(numbers), max(numbers)
    by_chance = _END_SHARE if setting.tuned else 1 / len(numbers)
    for end, which, more in ((low, "lower", "smaller"), (high, "upper", "larger")):
        there = [None if value is None else setting.is_at(value, end, _END_SHARE) for value in setting.values]
        having = [index for index in best if there[index] is not None]
        hits = sum(bool(there[index]) for index in having)
        at_end = [accuracy for accuracy, is_there in zip(accuracies, there, strict=True) if is_there]
        others = [accuracy for accuracy, is_there in zip(accuracies, there, strict=True) if is_there is False]
        if (
            len(having) < FEWEST_BEST
            or not setting.is_at(setting.values[having[0]], end, _TIP_SHARE)
            or hits < 0.8 * len(having)
            or _at_least(hits, len(having), by_chance) >= _MET_BY_CHANCE
            or (len(others) >= FEWEST_BEST and _better_by_chance(at_end, others) >= _BETTER_BY_CHANCE)
            or end == 0 == low
        ):
            continue
        count = f"{hits} of the {len(having)} most accurate students"
        if setting.tuned:
            return (
                f"{setting.name} is stuck at the {which} end of its range, {number(low)} to {number(high)} ({count}): "
                f"{more} values may be better, so widen `tune`."
            )
        return (
            f"{setting.name} is stuck at {number(end)}, its {'smallest' if end == low else 'largest'} value ({count}): "
            f"{more} ones may be better, so widen the space as far as the constraints allow."
        )
    return ""


def _better_by_chance(ours: Sequence[float], others: Sequence[float]) -> float:
    """Return how likely `ours` are so much above `others` by chance (Mann and Whitney's U, normal approximation)."""
    wins = sum((a > b) + 0.5 * (a == b) for a in ours for b in others)
    pairs = len(ours) * len(others)
    deviation = math.sqrt(pairs * (len(ours) + len(others) + 1) / 12)
    return 0.5 * math.erfc((wins - pairs / 2) / deviation / math.sqrt(2)) if pairs else 1.0


def _at_least(hits: int, tries: int, share: float) -> float:
    """Return how likely at least `hits` of `tries` are, each with chance `share` (binomial)."""
    return sum(math.comb(tries, k) * share**k * (1 - share) ** (tries - k) for k in range(hits, tries + 1))


def _space(run: RunRecord) -> SearchSpace | None:
    """Return the space that the run recorded, None where it did not."""
    record = run.lock.get("identity", {}).get("space")
    if record is None:
        return None
    try:
        return recorded_space(run.config.space, record)
    except RunFolderError:
        return None


def _assignment(trial: TrialRecord, space: SearchSpace | None) -> dict[str, Scalar]:
    """Return what was chosen for `trial` and is active in its student.

    An arch numbers its stages anew where one is left out and spells equal networks alike, so what was proposed says
    better what was chosen. Records without it are read from the arch.
    """
    if trial.proposed and space is not None:
        chosen = {choice.name for choice in space.choices}
        active = space.active({name: value for name, value in trial.proposed.items() if name in chosen})
        return {
            name: normalise_scalar(value)
            for name, value in active.items()
            if name in chosen and not _is_removed(name, active)
        }
    return trial.arch.choices


def _is_removed(name: str, chosen: Mapping[str, Scalar]) -> bool:
    """Whether `name` belongs to a stage of depth 0."""
    stage, _, rest = name.rpartition(".")
    return bool(stage) and rest != "depth" and chosen.get(f"{stage}.depth") == 0


def _tuned(run: RunRecord, trials: Sequence[TrialRecord]) -> list[Searched]:
    names = sorted(set.intersection(*(set(trial.tuned) for trial in trials))) if trials else []
    found = []
    for name in names:
        values = tuple(float(trial.tuned[name]) for trial in trials)
        asked = run.config.tune.get(name)
        if len(set(values)) > 1:
            ends = (min(values), max(values)) if asked is None else (asked.low, asked.high)
            found.append(Searched(name, values, ends, tuned=True, log=asked is not None and asked.log))
    return found


def _in_order(values: set[Scalar]) -> tuple[Scalar, ...]:
    return tuple(sorted(values, key=lambda value: (isinstance(value, str), value)))
