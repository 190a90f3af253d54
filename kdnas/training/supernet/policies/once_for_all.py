"""The fixed phases of Cai et al., "Once-for-all" (ICLR 2020): kernel size, depth, then width and all the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdnas.core.shrinking import Stage
from kdnas.training.supernet.policies import POLICIES, FixedPolicy

_WIDTHS = ("width", "bottleneck")
_PHASES: tuple[tuple[str, tuple[str, ...] | None, int | None, float, int, float], ...] = (
    ("largest", (), 0, 180 * 1, 1, 1.0),
    ("kernel size", ("kernel size",), None, 125 * 1, 1, 0.37),
    ("depth 1", ("depth",), 1, 25 * 2, 2, 0.031),
    ("depth 2", ("depth",), None, 125 * 2, 2, 0.092),
    ("width 1", _WIDTHS, 1, 25 * 4, 4, 0.031),
    ("everything", None, None, 125 * 4, 4, 0.092),
)
"""Name, dimensions that are unlocked (None: all), by so many rungs (None: all), share, subnets a step, learning rate.

The authors' epochs times subnets a step are the shares; the learning rates are those of their script over that of the
largest net.
"""


@POLICIES.register
class OnceForAll(FixedPolicy):
    """The fixed phases of Once-for-all: kernel size, depth, then width and all the rest."""

    @property
    def stages(self) -> Sequence[Stage]:
        """The phases whose dimensions the space has."""
        stages: list[Stage] = []
        allowed, has_sorted = self.ladders.only_largest, False
        for name, dimensions, rungs, weight, subnets, rate in _PHASES:
            before, allowed = allowed, self.ladders.descend(allowed, dimensions, rungs)
            if stages and allowed == before:
                continue
            sorts = not has_sorted and (dimensions is None or dimensions == _WIDTHS)
            has_sorted |= sorts
            stage = Stage(name, allowed, float(weight), rate, "stage", subnets, sort_channels=sorts)
            stages.append(replace(stage, reason="written down"))
        total = sum(stage.share for stage in stages)
        return [replace(stage, share=stage.share / total) for stage in stages]
