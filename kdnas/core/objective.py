"""Quantities with a unit and a direction, and bounds on them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdnas.core.interval import share_interval
from kdnas.errors import TrialError

Direction = Literal["maximize", "minimize"]
Kind = Literal["cheap", "measured", "trained"]


@dataclass(frozen=True)
class Quantity:
    """Something known about a student.

    `kind` is what it takes to compute it: "cheap" follows from the arch alone in under a millisecond, "measured"
    needs the built but untrained student, "trained" needs training. One whose unit is "fraction" is shown in per cent.
    """

    name: str
    unit: str
    direction: Direction
    kind: Kind

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value that it can have: a perplexity is that of certainty, 1, or more."""
        return _RANGES.get(self.unit, (-math.inf, math.inf))

    @property
    def is_bounded(self) -> bool:
        """Whether it has a least and a greatest value, as a share or a correlation has."""
        return all(map(math.isfinite, self.range))

    @property
    def is_fraction(self) -> bool:
        """Whether it is a share of something, in [0, 1], which is shown in per cent."""
        return self.unit == "fraction"

    @property
    def point(self) -> float:
        """One point, in its own unit: a hundredth of a share or a correlation, of anything else one unit."""
        return 0.01 if self.is_bounded else 1.0

    def minimised(self, value: float) -> float:
        """Return `value`, or its negative, so that smaller is better."""
        return -value if self.direction == "maximize" else value

    def gain(self, value: float, over: float) -> float:
        """Return by how much `value` is better than `over`, in its own unit; negative where it is worse."""
        return self.minimised(over) - self.minimised(value)

    def lead(self, value: float, over: float) -> float:
        """Return how far ahead of `over` a score is on a scale on which steps count alike.

        For one between two ends the difference; for a positive score without an upper end, such as a perplexity, that
        of the logarithms, where 0.05 is 5 per cent.
        """
        if self.is_bounded or value <= 0 or over <= 0:
            return self.gain(value, over)
        return self.gain(math.log(value), math.log(over))

    def as_share(self, value: float) -> float:
        """Return a score as a number in [0, 1] of which more is better: a perplexity as a token's mean probability.

        That mean is the geometric one, the perplexity's inverse. What is to be large stays as it is.
        """
        return 1.0 / value if self.direction == "minimize" else value

    def from_share(self, share: float) -> float:
        """Return the score that `as_share` made `share` of."""
        if self.direction == "maximize":
            return share
        return 1.0 / share if share > 0 else math.inf

    def ends(self, mean: float, half_width: float | None) -> tuple[float, float]:
        """Return the ends of an interval around `mean`; it leaves the quantity's range at neither end."""
        if self.is_fraction:
            return share_interval(mean, half_width)
        half, (least, greatest) = half_width or 0.0, self.range if self.is_bounded else (-math.inf, math.inf)
        return max(mean - half, least), min(mean + half, greatest)

    def shown(self, value: float) -> str:
        """Return a score as it is printed: "97.10 %", or "23.4"."""
        if self.is_fraction:
            return f"{100 * value:.2f} %"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

    def shown_points(self, difference: float) -> str:
        """Return a difference of scores: "2.1 points" of a share or a correlation, else a number in its own unit."""
        return f"{100 * difference:.1f} points" if self.is_bounded else f"{difference:.3g}"


ACCURACY = Quantity("accuracy", "fraction", "maximize", "trained")
PERPLEXITY = Quantity("perplexity", "per token", "minimize", "trained")
F1 = Quantity("f1", "fraction", "maximize", "trained")
"""The mean over the classes of the harmonic mean of precision and recall."""
MATTHEWS = Quantity("matthews", "correlation", "maximize", "trained")
"""The correlation of classes predicted and classes true (Matthews 1975; of more than two, Gorodkin 2004)."""
SPEARMAN = Quantity("spearman", "correlation", "maximize", "trained")
"""The correlation of the ranks of numbers predicted and numbers true."""
PEARSON = Quantity("pearson", "correlation", "maximize", "trained")
"""The correlation of the numbers themselves."""
MRR = Quantity("mrr", "fraction", "maximize", "trained")
"""The mean over lists of 1 / the rank of the right candidate (Voorhees, TREC-8 1999)."""
OF_CLASSES, OF_VALUES, OF_LISTS = (ACCURACY, F1, MATTHEWS), (SPEARMAN, PEARSON), (ACCURACY, MRR)
"""What is known of answers that are classes, of those that are numbers, and of ranked lists; the first is usual."""
_RANGES = {ACCURACY.unit: (0.0, 1.0), PERPLEXITY.unit: (1.0, math.inf), MATTHEWS.unit: (-1.0, 1.0)}
SCORES = {score.name: score for score in (ACCURACY, PERPLEXITY, *OF_CLASSES[1:], *OF_VALUES, MRR)}
"""What tasks are scored by, by name."""

_NEVER_NEGATIVE = {
    *(name for name, score in SCORES.items() if score.range[0] >= 0),
    *("macs", "params", "latency_ms", "peak_memory_bytes"),
}
"""Quantities of kdnas's own; what a cost of the user's may be is his."""


def unsound(name: str, value: float) -> str:
    """Return why `value` can be no value of the quantity `name`; empty where it can."""
    if not math.isfinite(value):
        return f"the {name} is {value}"
    if name in _NEVER_NEGATIVE and value < 0:
        return f"the {name} is {value:g}, below 0"
    if name in SCORES and SCORES[name].is_bounded and not SCORES[name].range[0] <= value <= SCORES[name].range[1]:
        a = "a fraction in 0..1" if SCORES[name].is_fraction else "a correlation in -1..1"
        return f"the {name} is {value:g}, not {a}"
    return ""


def refuse_unmeasurable(values: Mapping[str, float]) -> None:
    """Raise TrialError where a value can be none of its quantity: it would meet every constraint and top the front."""
    for name, value in values.items():
        if wrong := unsound(name, value):
            raise TrialError(wrong)


def score_named(name: str) -> Quantity | None:
    """Return the score that an objective's name speaks of, `accuracy` or `TASK.accuracy`; None where it is no score."""
    return SCORES.get(name.rpartition(".")[2])


def score_among(names: Iterable[str]) -> Quantity:
    """Return the score that a study's objectives name, by itself or of tasks: accuracy where they name none."""
    return next((score for name in names if (score := score_named(name)) is not None), ACCURACY)


@dataclass(frozen=True)
class Constraint:
    """A hard bound such as `macs<=10e6`. Feasible when `violation(value) <= 0`."""

    name: str
    operator: Literal["<=", ">="]
    bound: float
    percent: bool = False
    """Whether `bound` is a percentage of the teacher's value, which must be put in its place first."""

    def is_goal_for(self, score: Quantity) -> bool:
        """Whether it bounds the score from below, which is known only once a student is trained."""
        return self.name == score.name and (self.operator == ">=") == (score.direction == "maximize")

    def violation(self, value: float) -> float:
        """Return how far `value` lies on the wrong side of the bound (<= 0 is feasible), in the quantity's unit."""
        if self.percent:
            raise ValueError(f"{self} is a share of the teacher's {self.name}, which is not put in its place yet")
        return value - self.bound if self.operator == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.bound:g}{'%' if self.percent else ''}"


_BOUND = re.compile(r"^\s*([a-z_][a-z0-9_]*)\s*(<=|>=)\s*([-+0-9.eE]+)\s*([kKMG%]?)\s*$")
_SUFFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


def parse_constraint(text: str, score: Quantity | None = None) -> Constraint:
    """Return the constraint that `text` spells. Raises ValueError on anything else.

    `macs<=10e6`, `macs<=10M`; `macs<=5%` is a share of the teacher's. Of a `score` that is a fraction, `accuracy>=95%`
    is the same as `accuracy>=0.95`.
    """
    match = _BOUND.match(text)
    try:
        if match is None:
            raise ValueError
        percent = match[4] == "%"
        bound = float(match[3]) * (1.0 if percent else _SUFFIX[match[4]])
        if not math.isfinite(bound):
            raise ValueError
    except ValueError:
        raise ValueError(f"{text!r} is not a bound such as 'macs<=10e6', 'params<=1M' or 'macs<=5%'") from None
    if score is not None and match[1] == score.name:
        if score.is_fraction:
            bound, percent = bound / 100 if percent else bound, False
        least, greatest = (0.0, math.inf) if percent else score.range
        if not least <= bound <= greatest:
            is_a = "a fraction, such as 0.95 or 95%" if score.is_fraction else f"never below {least:g}"
            is_a = "a correlation, -1 to 1" if score.is_bounded and not score.is_fraction else is_a
            raise ValueError(f"{text!r}: {score.name} is {is_a}")
    return Constraint(match[1], match[2], bound, percent)  # type: ignore[arg-type]


def breaches(
    values: Mapping[str, float], constraints: Sequence[Constraint], *, known_only: bool = False
) -> tuple[str, ...]:
    """Return, in words, every constraint that `values` break; empty when all hold.

    One whose quantity is not known counts as broken, unless `known_only`: before a student is measured nothing can be
    decided of it.
    """
    broken = []
    for constraint in constraints:
        value = values.get(constraint.name, math.nan)
        if math.isnan(value) and not known_only:
            broken.append(f"{constraint} ({constraint.name} is not known)")
        elif constraint.violation(value) > 0:
            broken.append(f"{constraint} ({constraint.name} is {value:.6g})")
    return tuple(broken)


def minimised(rows: Sequence[Mapping[str, float]], objectives: Sequence[Quantity]) -> np.ndarray:
    """Return the objective values of `rows` as an array [N, M] in which smaller is always better."""
    values = [[objective.minimised(float(row[objective.name])) for objective in objectives] for row in rows]
    return np.asarray(values, dtype=float).reshape(len(rows), len(objectives))
