"""Costs of a student that need no training: closed-form ones and measured ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from kdnas.core.measurement import Calibration, Measurement, Price
from kdnas.core.objective import Quantity
from kdnas.core.task import TaskSpec
from kdnas.registry import Registry


class CheapCost(ABC):
    """A cost that follows from an arch's price. `quantity.kind` is "cheap"."""

    quantity: ClassVar[Quantity]

    @abstractmethod
    def value(self, price: Price) -> float:
        """Return the cost in the quantity's unit."""


class MeasuredCost(ABC):
    """A cost measured on a built student on `device`. `quantity.kind` is "measured"."""

    quantity: ClassVar[Quantity]
    calibration: ClassVar[type[Calibration]] = Calibration
    """What `calibrate` returns: a frozen dataclass of numbers, texts and other such records."""

    def __init__(self, device: torch.device):
        self.device = device

    def calibrate(self, task: TaskSpec) -> Calibration:
        """Return what must be measured once a study, on a quiet machine; it is stored and handed to every `measure`."""
        return Calibration()

    def unlike(self, calibration: Calibration) -> str:
        """Return in words why measurements made here are not comparable with the run's; empty where they are."""
        return ""

    @abstractmethod
    def measure(self, module: nn.Module, task: TaskSpec, calibration: Calibration) -> Measurement:
        """Return the measured cost of `module` (left in the mode it was in)."""


COSTS: Registry[type[CheapCost] | type[MeasuredCost]] = Registry("cost", __name__, CheapCost, MeasuredCost)
"""Members: CheapCost classes, built with no arguments, and MeasuredCost classes, `(device, *, options)`."""
