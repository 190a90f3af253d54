"""The largest subnet alone for half of the budget, then everything by the sandwich rule (as DepS does, ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdnas.core.shrinking import Stage
from kdnas.training.supernet.policies import POLICIES, FixedPolicy


@POLICIES.register
class Delayed(FixedPolicy):
    """The largest subnet alone for half of the budget, then everything, as sandwich does."""

    @property
    def stages(self) -> Sequence[Stage]:
        """Two stages."""
        alone = Stage("largest", self.ladders.only_largest, 0.5, reason="written down")
        return alone, replace(self.sandwich, sort_channels=True)
