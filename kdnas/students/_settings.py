"""Which values a choice of a stated family takes, in code and in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdnas.core.arch import Scalar


@dataclass(frozen=True)
class Setting:
    """One choice a family knows: which values it takes, in code and in words."""

    accepts: Callable[[Scalar], bool]
    allowed: str


def whole(low: int, high: int) -> Setting:
    """Return the setting of a whole number in [low, high]."""
    return Setting(lambda value: type(value) is int and low <= value <= high, f"whole numbers {low}..{high}")


def one_of(*values: Scalar) -> Setting:
    """Return the setting of one of `values`, type included (True is not 1)."""
    known = {(type(value), value) for value in values}
    return Setting(lambda value: (type(value), value) in known, ", ".join(map(str, values)))
