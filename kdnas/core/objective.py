"""Quantities with a unit and a direction, and bounds on them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Direction = Literal["maximize", "minimize"]
Kind = Literal["cheap", "measured", "trained"]


@dataclass(frozen=True)
class Quantity:
    """Something known about a student.

    `kind` says what it takes to know it: "cheap" follows from the arch alone in under a millisecond, "measured"
    needs the built but untrained student, "trained" needs training.
    """

    name: str
    unit: str
    direction: Direction
    kind: Kind


ACCURACY = Quantity("accuracy", "fraction", "maximize", "trained")


@dataclass(frozen=True)
class Constraint:
    """A hard bound such as `macs<=10e6`. Feasible when `violation(value) <= 0`."""

    name: str
    operator: Literal["<=", ">="]
    bound: float
    percent: bool = False
    """Whether `bound` is a percentage of the teacher's value, which must be put in its place first."""

    @property
    def is_score_floor(self) -> bool:
        """Whether it says how good a student must at least be: known only once it is trained."""
        return self.name == ACCURACY.name and self.operator == ">="

    def violation(self, value: float) -> float:
        """Return how far `value` lies on the wrong side of the bound (<= 0 is feasible), in the quantity's unit."""
        if self.percent:
            raise ValueError(f"{self} is a share of the teacher's {self.name}, which is not put in its place yet")
        return value - self.bound if self.operator == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.bound:g}{'%' if self.percent else ''}"


_BOUND = re.compile(r"^\s*([a-z_][a-z0-9_]*)\s*(<=|>=)\s*([-+0-9.eE]+)\s*([kKMG%]?)\s*$")
_SUFFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


def parse_constraint(text: str) -> Constraint:
    """Return the constraint that `text` spells. Raises ValueError on anything else.

    `macs<=10e6`, `macs<=10M`; `macs<=5%` is a share of the teacher's, `accuracy>=95%` the same as `accuracy>=0.95`.
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
    if match[1] == ACCURACY.name:
        bound, percent = bound / 100 if percent else bound, False
        if not 0.0 <= bound <= 1.0:
            raise ValueError(f"{text!r}: an accuracy is a fraction, such as 0.95 or 95%")
    return Constraint(match[1], match[2], bound, percent)  # type: ignore[arg-type]


def breaches(
    values: Mapping[str, float], constraints: Sequence[Constraint], *, known_only: bool = False
) -> tuple[str, ...]:
    """Return, in words, every constraint that `values` break; empty when all hold.

    One whose quantity is not known counts as broken, unless `known_only`: before a student is measured nothing can be
    said of it.
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
    signs = [-1.0 if objective.direction == "maximize" else 1.0 for objective in objectives]
    values = [
        [sign * float(row[objective.name]) for sign, objective in zip(signs, objectives, strict=True)] for row in rows
    ]
    return np.asarray(values, dtype=float).reshape(len(rows), len(objectives))
