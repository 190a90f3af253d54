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

    @property
    def amount(self) -> float:
        """How often the whole training split was seen: epochs x data fraction."""
        return self.epochs * self.data_fraction

    @property
    def words(self) -> str:
        """Such as `6 epochs` or `6 epochs of 25 % of the data`."""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return epochs if self.data_fraction == 1 else f"{epochs} of {100 * self.data_fraction:g} % of the data"
