"""Peak memory of one forward pass: parameters, buffers, the input, and the most activations alive at once."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from kdnas.core.measurement import Calibration, Measurement
from kdnas.core.objective import Quantity
from kdnas.core.task import TaskSpec
from kdnas.costs import COSTS, MeasuredCost
from kdnas.targets import TARGETS, given


@COSTS.register
class PeakMemoryBytes(MeasuredCost):
    """Peak bytes of parameters, buffers and live activations in one float32 inference pass."""

    quantity = Quantity("peak_memory_bytes", "bytes", "minimize", "measured")

    def __init__(self, device: torch.device, *, batch_size: Annotated[int, Field(ge=1, le=65536)] = 1):
        super().__init__(device)
        options = {"device": str(device)} if device.type == "cuda" else {}
        self._target = TARGETS.build(device.type, batch_size=batch_size, **options)

    def measure(self, module: nn.Module, task: TaskSpec, calibration: Calibration) -> Measurement:
        """Return the peak bytes of `module`; deterministic on a CPU, so its spread is 0."""
        measured = self._target.peak_memory_bytes(module, given(task, self._target.batch_size))
        assert isinstance(measured, Measurement)  # cpu and cuda always tell
        return measured
