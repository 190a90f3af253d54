"""Fidelity: how much of full training a score has seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Fidelity:
    """Stored with every trained score. `data_fraction` is the share of the training split, in (0, 1]."""

    epochs: int
    data_fraction: float = 1.0

    def as_dict(self) -> dict[str, float]:
        """Return the plain record that goes into a trial."""
        return asdict(self)
