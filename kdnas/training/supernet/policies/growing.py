"""One random subnet a step, small ones first (progressive growing: Karras et al., ICLR 2018, of generators)."""

from __future__ import annotations

from collections.abc import Sequence

from kdnas.core.shrinking import Ladders, Stage
from kdnas.training.supernet.policies import POLICIES, FixedPolicy, Share, ShrinkingSettings


@POLICIES.register
class Growing(FixedPolicy):
    """One random subnet a step, small ones first: the bound of their MACs rises from the smallest's to the largest's.

    `growing_share` is the part of the budget over which it rises; then any is trained.
    """

    def __init__(self, ladders: Ladders, settings: ShrinkingSettings, *, growing_share: Share = 1.0):
        super().__init__(ladders, settings)
        self._growing_share = growing_share

    @property
    def stages(self) -> Sequence[Stage]:
        """One stage."""
        sampling, growth = self.settings.sampling, self._growing_share
        return (Stage("everything", self.ladders.values, 1.0, sampling=sampling, growth=growth, reason="written down"),)
