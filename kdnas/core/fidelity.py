"""Fidelity: how much of full training a score has seen, and whose weights it began from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Weights = Literal["own", "shared"]
"""own: the student's, from a random start; shared: cut from the run's supernet."""


@dataclass(frozen=True)
class Fidelity:
    """Stored with every trained score. `data_fraction` is the share of the training split, in (0, 1].

    Where the weights are shared, `epochs` are those that the student was trained after they were cut: 0 for none.
    """

    epochs: int
    data_fraction: float = 1.0
    weights: Weights = "own"
    """Records from before there was a choice do not say it: their weights are own."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain record that goes into a trial."""
        return asdict(self)

    @property
    def training(self) -> dict[str, Any]:
        """What of it is a setting of the recipe's training."""
        return {"epochs": self.epochs, "data_fraction": self.data_fraction}

    @property
    def amount(self) -> float:
        """How often the student itself saw the whole training split: epochs x data fraction."""
        return self.epochs * self.data_fraction

    @property
    def words(self) -> str:
        """Such as `6 epochs`, `6 epochs of 25 % of the data`, `shared weights` or `2 epochs from shared weights`."""
        if self.weights == "shared" and self.epochs == 0:
            return "shared weights"
        words = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        words += "" if self.data_fraction == 1 else f" of {100 * self.data_fraction:g} % of the data"
        return words if self.weights == "own" else f"{words} from shared weights"

    @property
    def reached(self) -> str:
        """Such as `after 6 epochs` or `with shared weights`: how the score was reached."""
        return f"{'with' if self.epochs == 0 else 'after'} {self.words}"

    @property
    def origin(self) -> str:
        """From what the student's training began, in words."""
        return "from scratch" if self.weights == "own" else "from shared weights"

    @property
    def key(self) -> str:
        """A short spelling for the names of records, such as `6x0.25`."""
        own = f"{self.epochs}x{self.data_fraction:g}"
        return own if self.weights == "own" else f"{own}-shared"
