"""Fidelity: how much of full training a score has seen, and whose weights it began from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Weights = Literal["own", "shared"]
"""own: the student's, from a random start; shared: cut from the run's supernet."""


@dataclass(frozen=True)
class Fidelity:
    """Stored with every trained score. `data_fraction` is the share of the training split, in (0, 1].

    `resolution_fraction`, in (0, 1], is the share of the images' height and width that the student was trained and
    scored at. Where the weights are shared, `epochs` are those that the student was trained after they were cut: 0 for
    none.
    """

    epochs: int
    data_fraction: float = 1.0
    weights: Weights = "own"
    """Records from before there was a choice do not say it: their weights are own."""
    resolution_fraction: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return the plain record that goes into a trial."""
        return asdict(self)

    @property
    def training(self) -> dict[str, Any]:
        """What of it is a setting of the recipe's training."""
        names = ("epochs", "data_fraction", "resolution_fraction")
        return {name: getattr(self, name) for name in names}

    @property
    def amount(self) -> float:
        """The work of training, in epochs of the whole training split: epochs x data fraction x resolution fraction^2.

        What a student computes for an image grows with the image's area.
        """
        return self.epochs * self.data_fraction * self.resolution_fraction**2

    @property
    def words(self) -> str:
        """Such as `6 epochs`, `6 epochs of 25 % of the data`, `shared weights` or `2 epochs from shared weights`.

        A lower resolution is told as `6 epochs at 50 % of the resolution`.
        """
        if self.weights == "shared" and self.epochs == 0:
            return "shared weights"
        words = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        words += "" if self.data_fraction == 1 else f" of {100 * self.data_fraction:g} % of the data"
        words += "" if self.resolution_fraction == 1 else f" at {100 * self.resolution_fraction:g} % of the resolution"
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
        """A short spelling for the names of records, such as `6x0.25` or, at half the resolution, `6x0.25@0.5`."""
        own = f"{self.epochs}x{self.data_fraction:g}"
        own += "" if self.resolution_fraction == 1 else f"@{self.resolution_fraction:g}"
        return own if self.weights == "own" else f"{own}-shared"
