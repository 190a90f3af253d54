"""Everything from the start, one uniformly random subnet a step (Shipard et al., CVPR workshops 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from kdnas.core.shrinking import Stage
from kdnas.training.supernet.policies import POLICIES, FixedPolicy


@POLICIES.register
class Random(FixedPolicy):
    """Everything from the start: one uniformly random subnet a step."""

    @property
    def stages(self) -> Sequence[Stage]:
        """One stage."""
        return (Stage("everything", self.ladders.values, 1.0, reason="written down"),)
