"""Peak memory of one forward pass: parameters, buffers, the input, and the most activations alive at once."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from kdnas.core.measurement import Calibration, Measurement
from kdnas.core.objective import Quantity
from kdnas.core.task import TaskSpec
from kdnas.costs import COSTS, MeasuredCost
from kdnas.costs._steps import step_of
from kdnas.targets import TARGETS


@COSTS.register
class PeakMemoryBytes(MeasuredCost):
    """Peak bytes of parameters, buffers and live activations in one float32 inference pass.

    With `per: token` of the step in which a language model writes the last of the longest text's tokens: keys and
    values that it keeps of those before count.
    """

    quantity = Quantity("peak_memory_bytes", "bytes", "minimize", "measured")

    def __init__(
        self,
        device: torch.device,
        *,
        batch_size: Annotated[int, Field(ge=1, le=65536)] = 1,
        per: Literal["pass", "token"] = "pass",
    ):
        super().__init__(device)
        self._per = per
        options = {"device": str(device)} if device.type == "cuda" else {}
        self._target = TARGETS.build(device.type, batch_size=batch_size, **options)

    def measure(self, module: nn.Module, task: TaskSpec, calibration: Calibration) -> Measurement:
        """Return the peak bytes of `module`; deterministic on a CPU, so its spread is 0."""
        measured = self._target.peak_memory_bytes(*step_of(module, task, self._target.batch_size, self._per))
        assert isinstance(measured, Measurement)  # cpu and cuda always measure it
        return measured
