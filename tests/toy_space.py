"""A small space of residual networks, and what they cost by a rule that can be worked out by hand."""

from __future__ import annotations

from kdnas.core.shrinking import Ladders
from kdnas.core.space import Choice, SearchSpace

SPACE = SearchSpace(
    "toy",
    "resnet",
    (
        Choice("stem_width", (2, 8, 4)),
        Choice("stage1.depth", (0, 1, 2)),
        Choice("stage1.width", (4, 16)),
        Choice("stage1.skip", ("identity", "none", "projection")),
    ),
)


def macs(assignment) -> int:
    """Convolutions of a made-up network, in which the stage costs nothing where it is left out."""
    depth, width, stem = assignment["stage1.depth"], assignment["stage1.width"], assignment["stem_width"]
    projection = 5 if assignment["stage1.skip"] == "projection" and depth else 0
    return 10 * stem + depth * (width * stem + width * width) + projection


LADDERS = Ladders.of(SPACE, macs)
