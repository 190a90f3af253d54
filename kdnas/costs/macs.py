"""Multiply-accumulates of convolutions, linear layers and matrix products at batch 1."""

from __future__ import annotations

from kdnas.core.measurement import Price
from kdnas.core.objective import Quantity
from kdnas.costs import COSTS, CheapCost


@COSTS.register
class Macs(CheapCost):
    """Multiply-accumulates at batch 1, from the closed form."""

    quantity = Quantity("macs", "MACs", "minimize", "cheap")

    def value(self, price: Price) -> float:
        """Return the multiply-accumulates."""
        return float(price.macs)
