"""Pointing at one student of a front: the words a user may write, and which student they mean.

One spelling serves `--pick`, `export.pick` and, as far as it bounds anything, `constraints`. The score is the task's
(`kdnas.core.task.TaskSpec.score`): a fraction such as accuracy, or a number that is to be small such as perplexity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kdnas.core.objective import Constraint, Quantity, breaches, minimised, parse_constraint
from kdnas.core.pareto import knee

SHORTEST_PREFIX = 4
"""Hexadecimal digits of an arch_id that are enough to name a student."""
DEFAULT_PICK = "near-best"
PICKS = (
    "near-best (the cheapest within 1 point of the best, or within its 95 % interval up to 3 points), "
    "best-0.5 (the cheapest within 0.5 points of the best), "
    "teacher-1 (the cheapest within 1 point of the teacher), "
    "best, knee (needs three students), an arch_id, or bounds joined by commas: "
    "macs<=10e6 or macs<=5% (of the teacher's) for the best within them, "
    "a bound on the score, such as accuracy>=0.95 or perplexity<=20, for the cheapest that reaches it"
)
"""What a pick may be, for help and messages."""
FEWEST_FOR_A_KNEE = 3
_DEFAULT_POINTS = 1.0
MOST_POINTS = 3.0
"""As far as an interval reaches: that of two seeds may span the whole scale, within which everybody is near."""
_ROUNDING = 1e-9
_NEAR = re.compile(r"^(best|teacher)\s*-\s*(\d+(?:\.\d+)?)$")
_ARCH_ID = re.compile(rf"^[0-9a-f]{{{SHORTEST_PREFIX},12}}$")


class PickError(ValueError):
    """A pick that is misspelled, or that no student meets; `allowed` lists what there is instead, where that helps."""

    def __init__(self, what: str, allowed: str = ""):
        super().__init__(what)
        self.allowed = allowed


@dataclass(frozen=True)
class Near:
    """At most `points` worse than the best student or the teacher; None: a point, or the best one's interval, to 3."""

    to: Literal["best", "teacher"]
    points: float | None = None

    def __str__(self) -> str:
        return f"near-{self.to}" if self.points is None else f"{self.to}-{self.points:g}"


@dataclass(frozen=True)
class Pick:
    """A parsed pick: a student's id, or a `rule` among those within the `bounds`."""

    rule: Literal["best", "knee", "cheapest"]
    bounds: tuple[Constraint, ...] = ()
    near: Near | None = None
    arch_id: str = ""


@dataclass(frozen=True)
class Candidate:
    """A student that may be picked; `half_width` is that of its score's 95 % interval, where that is known."""

    name: str
    values: Mapping[str, float]
    half_width: float | None = None


@dataclass(frozen=True)
class Standard:
    """The teacher, whom bounds may speak of: its value of every quantity that is known of it, its score included."""

    values: Mapping[str, float]


def parse_pick(text: str, score: Quantity) -> Pick:
    """Return the pick that `text` spells (`PICKS`) of students with this `score`. Raises PickError on anything else."""
    wanted = text.strip()
    wanted = wanted.lower() if wanted.lower() in ("best", "knee", DEFAULT_PICK) else wanted
    if _ARCH_ID.match(wanted.lower()):
        return Pick("best", arch_id=wanted.lower())
    words, bounds, near = [], [], None
    for part in (part.strip() for part in wanted.split(",")):
        if part in ("best", "knee"):
            words.append(part)
        elif (distance := _near(part)) is not None:
            words.append(part)
            near = distance
        else:
            try:
                bounds.append(parse_constraint(part, score))
            except ValueError as error:
                unknown = not re.search(r"[<>=]", part)
                raise PickError(f"{wanted!r} picks nothing" if unknown else str(error), PICKS) from None
    if len(words) > 1:
        raise PickError(f"{' and '.join(words)} are two picks", PICKS)
    if words == ["knee"]:
        return Pick("knee", tuple(bounds))
    asks_for_quality = bool(bounds) and all(bound.is_goal_for(score) for bound in bounds) and not words
    return Pick("cheapest" if near is not None or asks_for_quality else "best", tuple(bounds), near)


def parse_bound(text: str, score: Quantity) -> Constraint | Near:
    """Return the meaning of a constraint of a study: a bound, or a distance to the teacher. Raises ValueError."""
    near = _near(text.strip())
    if near is not None and near.to == "teacher":
        return near
    return parse_constraint(text, score)


def against(bound: Constraint | Near, teacher: Standard | None, score: Quantity) -> Constraint:
    """Return `bound` as a number, where it speaks of the teacher. Raises PickError where that is not known."""
    if isinstance(bound, Constraint) and not bound.percent:
        return bound
    if teacher is None:
        raise PickError(f"{bound} speaks of the teacher, and there is none")
    name = score.name if isinstance(bound, Near) else bound.name
    if not math.isfinite(teacher.values.get(name, math.nan)):
        raise PickError(f"{bound}: the teacher's {name!r} is not known", ", ".join(teacher.values))
    if isinstance(bound, Near):
        return floor(score, teacher.values[name], (bound.points or 0.0) * score.point)
    return replace(bound, bound=bound.bound / 100 * teacher.values[name], percent=False)


def floor(score: Quantity, value: float, distance: float) -> Constraint:
    """Return the bound that a score is at most `distance` worse than `value`, rounding forgiven."""
    if score.direction == "maximize":
        return Constraint(score.name, ">=", value - distance - _ROUNDING)
    return Constraint(score.name, "<=", value + distance + _ROUNDING)


def best_of(candidates: Sequence[Candidate], score: Quantity) -> int:
    """Return the candidate with the best score; of equals the first. ValueError where there is none."""
    known = [candidate.values.get(score.name) for candidate in candidates]
    losses = [math.inf if value is None else score.minimised(value) for value in known]
    return min(range(len(losses)), key=losses.__getitem__)


def margin(near: Near, best: Candidate, score: Quantity) -> float:
    """Return how much worse than `best` a student may be that is near it, in the score's unit."""
    if near.points is not None:
        return near.points * score.point
    return min(max(_DEFAULT_POINTS * score.point, best.half_width or 0.0), MOST_POINTS * score.point)


def choose(
    pick: Pick,
    candidates: Sequence[Candidate],
    objectives: Sequence[Quantity],
    score: Quantity,
    teacher: Standard | None = None,
) -> int:
    """Return the place of the student that `pick` means among the `candidates` of a front.

    "Cheapest" is about the first of `objectives` that is not the `score`.

    Bounds come first; the rule chooses among those within them. Raises PickError where nobody meets them, naming the
    nearest miss, where a bound speaks of something unknown, and where there is no knee.
    """
    bounds = [against(bound, teacher, score) for bound in pick.bounds]
    known = sorted(set().union(*(candidate.values for candidate in candidates)))
    for bound in bounds:
        if bound.name not in known:
            raise PickError(f"no student's {bound.name!r} is known", ", ".join(known))
    if pick.near is not None and pick.near.to == "teacher":
        bounds.append(against(pick.near, teacher, score))
    fitting = _within(candidates, bounds, pick)
    if pick.near is not None and pick.near.to == "best":
        best = candidates[fitting[best_of([candidates[place] for place in fitting], score)]]
        near = floor(score, best.values[score.name], margin(pick.near, best, score))
        fitting = [place for place in fitting if not breaches(candidates[place].values, [near])]
    chosen = [candidates[place] for place in fitting]
    if pick.rule == "knee":
        return fitting[_knee(chosen, objectives)]
    if pick.rule == "cheapest":
        return fitting[_cheapest(chosen, objectives, score)]
    return fitting[best_of(chosen, score)]


def _near(text: str) -> Near | None:
    if text == DEFAULT_PICK:
        return Near("best")
    match = _NEAR.match(text)
    return None if match is None else Near(match[1], float(match[2]))  # type: ignore[arg-type]


def _within(candidates: Sequence[Candidate], bounds: Sequence[Constraint], pick: Pick) -> list[int]:
    fitting = [place for place, candidate in enumerate(candidates) if not breaches(candidate.values, bounds)]
    if fitting:
        return fitting
    nearest = min(candidates, key=lambda candidate: _relative_miss(candidate.values, bounds))
    conditions = [*map(str, pick.bounds), *([str(pick.near)] if pick.near is not None else [])]
    values = ", ".join(
        f"{bound.name} {nearest.values.get(bound.name, math.nan):.6g}" for bound in {b.name: b for b in bounds}.values()
    )
    meant = ", ".join(str(bound) for bound in bounds)
    spelled = ", ".join(conditions)
    wanted = spelled if spelled == meant else f"{spelled} ({meant})"
    raise PickError(f"no student of the front meets {wanted}; the nearest is {nearest.name} with {values}")


def _relative_miss(values: Mapping[str, float], bounds: Sequence[Constraint]) -> float:
    misses = []
    for bound in bounds:
        value = values.get(bound.name, math.inf)
        misses.append(max(bound.violation(value), 0.0) / (abs(bound.bound) or 1.0) if math.isfinite(value) else 1e9)
    return sum(misses)


def _cheapest(candidates: Sequence[Candidate], objectives: Sequence[Quantity], score: Quantity) -> int:
    """Return the cheapest, of equals the one with the better score."""
    order = (next((objective for objective in objectives if objective != score), score), score)

    def key(place: int) -> tuple[float, ...]:
        values = candidates[place].values
        known = [quantity.minimised(values.get(quantity.name, math.nan)) for quantity in order]
        return tuple(math.inf if math.isnan(value) else value for value in known)

    return min(range(len(candidates)), key=key)


def _knee(candidates: Sequence[Candidate], objectives: Sequence[Quantity]) -> int:
    if 1 < len(candidates) < FEWEST_FOR_A_KNEE:
        raise PickError(
            f"{len(candidates)} students have no knee, which takes {FEWEST_FOR_A_KNEE}: between the two ends of a "
            "front nothing bends; pick near-best, best or a bound"
        )
    return knee(minimised([candidate.values for candidate in candidates], objectives))
