"""Everything from the start; largest, smallest and random subnets in every step (Yu and Huang, ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from kdnas.core.shrinking import Stage
from kdnas.training.supernet.policies import POLICIES, FixedPolicy


@POLICIES.register
class Sandwich(FixedPolicy):
    """Everything from the start: the largest, the smallest and random subnets in every step."""

    @property
    def stages(self) -> Sequence[Stage]:
        """One stage."""
        return (self.sandwich,)
