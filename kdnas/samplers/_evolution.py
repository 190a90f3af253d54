"""What the genetic algorithms share."""

from __future__ import annotations


def population_for(trials: int) -> int:
    """Return the population of a search of `trials`: a fifth, so that there are some generations, within 10..50."""
    return min(max(trials // 5, 10), 50)
