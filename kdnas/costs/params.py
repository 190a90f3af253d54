"""Number of trainable parameters."""

from __future__ import annotations

from kdnas.core.measurement import Price
from kdnas.core.objective import Quantity
from kdnas.costs import COSTS, CheapCost


@COSTS.register
class Params(CheapCost):
    """Trainable parameters, from the closed form."""

    quantity = Quantity("params", "parameters", "minimize", "cheap")

    def value(self, price: Price) -> float:
        """Return the number of parameters."""
        return float(price.params)
