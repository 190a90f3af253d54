"""Which values a choice of a stated family takes, in code and in words; and whether it is for images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdnas.core.arch import Scalar
from kdnas.errors import ConfigError, Problem
from kdnas.students import FamilyContext


@dataclass(frozen=True)
class Setting:
    """One choice of a family: which values it takes, in code and in words."""

    accepts: Callable[[Scalar], bool]
    allowed: str


def whole(low: int, high: int) -> Setting:
    """Return the setting of a whole number in [low, high]."""
    return Setting(lambda value: type(value) is int and low <= value <= high, f"whole numbers {low}..{high}")


def one_of(*values: Scalar) -> Setting:
    """Return the setting of one of `values`, type included (True is not 1)."""
    known = {(type(value), value) for value in values}
    return Setting(lambda value: (type(value), value) in known, ", ".join(map(str, values)))


def image_shape(context: FamilyContext, family: str) -> tuple[int, int, int]:
    """Return channels, height and width of what students are made for. Raises ConfigError where it is no image."""
    try:
        return context.task.image_shape
    except ValueError as error:
        raise ConfigError(Problem("space.family", f"students of {family} take images: {error}")) from None
