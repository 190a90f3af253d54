"""Fidelity: how much of full training a score has seen, and from what weights the training began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from kdnas.core.route import ROUTES, Route

SearchStart = Literal["random", "inherited", "supernet"]
"""Where a student's weights come from: drawn, cut from its teacher, or cut from the run's supernet."""
Start = Literal[SearchStart, "nested"]
"""Those of a finalist may also be cut from the next larger finalist that holds it, once that one is trained."""
STARTS: tuple[Start, ...] = get_args(Start)
_EARLIER: Mapping[str, Start] = {"own": "random", "shared": "supernet"}
"""The values of `weights` in records of earlier versions."""
ROUTE_WORDS: Mapping[str, str] = {
    "shrink": "by shrinking",
    "grow": "by growing",
    "assistants": "by assistants",
    "born_again": "born again",
}
_WORDS = {"inherited": "inherited weights", "supernet": "shared weights", "nested": "larger students' weights"}


@dataclass(frozen=True)
class Fidelity:
    """Stored with every trained score. `data_fraction` is the share of the training split, in (0, 1].

    `resolution_fraction`, in (0, 1], is the share of the samples' size (height and width, or tokens) that the student
    was trained and scored at. `epochs` are those that the student itself was trained: 0 where it was scored as it was
    cut out. By another `route` than `direct` they are the budget, of which the student has a part.
    """

    epochs: int
    data_fraction: float = 1.0
    start: Start = "random"
    resolution_fraction: float = 1.0
    route: Route = "direct"

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Fidelity:
        """Return the fidelity of a plain record; one that states no start is of random weights.

        Raises TypeError or ValueError where it is none.
        """
        known = dict(plain)
        if "weights" in known:
            weights = known.pop("weights")
            known["start"] = _EARLIER.get(weights, weights)
        fidelity = cls(**known)
        if fidelity.start not in STARTS:
            raise ValueError(f"start is {fidelity.start!r}, none of {', '.join(STARTS)}")
        if fidelity.route not in ROUTES:
            raise ValueError(f"route is {fidelity.route!r}, none of {', '.join(ROUTES)}")
        return fidelity

    def as_dict(self) -> dict[str, Any]:
        """Return the plain record that goes into a trial; a route is stated where it is none as in the search."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("route", "direct")}

    @property
    def directly(self) -> Fidelity:
        """The same by the direct route."""
        return replace(self, route="direct")

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
        """Such as `6 epochs`, `6 epochs of 25 % of the data`, `shared weights` or `2 epochs from inherited weights`.

        A lower resolution is written as `6 epochs at 50 % of the resolution`.
        """
        if self.epochs == 0:
            return _WORDS.get(self.start, "random weights")
        words = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        words += "" if self.data_fraction == 1 else f" of {100 * self.data_fraction:g} % of the data"
        words += "" if self.resolution_fraction == 1 else f" at {100 * self.resolution_fraction:g} % of the resolution"
        words += "" if self.start == "random" else f" from {_WORDS[self.start]}"
        return words + self._on_its_way

    @property
    def reached(self) -> str:
        """Such as `after 6 epochs` or `with shared weights`: how the score was reached."""
        return f"{'with' if self.epochs == 0 else 'after'} {self.words}"

    @property
    def origin(self) -> str:
        """From what the student's training began, in words."""
        return f"from {_WORDS.get(self.start, 'scratch')}{self._on_its_way}"

    @property
    def _on_its_way(self) -> str:
        """By whom the student was taught, where it was not its teacher."""
        return f", {ROUTE_WORDS[self.route]}" if self.route in ROUTE_WORDS else ""

    @property
    def key(self) -> str:
        """A short spelling for the names of records, such as `6x0.25` or, at half the resolution, `6x0.25@0.5`."""
        own = f"{self.epochs}x{self.data_fraction:g}"
        own += "" if self.resolution_fraction == 1 else f"@{self.resolution_fraction:g}"
        own = own if self.start == "random" else f"{own}-{'shared' if self.start == 'supernet' else self.start}"
        return own if self.route == "direct" else f"{own}-{self.route}"


def alone(start: Start) -> Start:
    """Return where the weights of a finalist come from that is trained without the others."""
    return "inherited" if start == "nested" else start
