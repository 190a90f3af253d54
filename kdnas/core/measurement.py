"""What is known of a student without training it: its closed-form price, and measured quantities with their spread."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Price:
    """Closed-form costs of an arch at batch 1: multiply-accumulates and parameter count."""

    macs: int
    params: int


@dataclass(frozen=True)
class Calibration:
    """What a measured cost found out once a study, on a quiet machine. A cost that finds something has its own."""


@dataclass(frozen=True)
class Measurement:
    """A measured quantity: median `value`, interquartile range `spread`, `repeats`, and where it was taken."""

    value: float
    spread: float
    repeats: int
    context: str

    def as_dict(self) -> dict[str, Any]:
        """Return the plain record that goes into a trial."""
        return asdict(self)
