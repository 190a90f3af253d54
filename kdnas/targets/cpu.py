"""PyTorch on this machine's processor."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from kdnas.core.measurement import Measurement
from kdnas.nn.memory import peak_bytes_cpu
from kdnas.nn.rows import laid_out
from kdnas.nn.timing import Run
from kdnas.targets import TARGETS, EnergyCounter, Missing, Target
from kdnas.targets._energy import processor_energy


@TARGETS.register
class Cpu(Target):
    """PyTorch on the processor: eager, channels_last. One thread is timed by the processor time that it takes.

    On an idle machine that is the time that passes; on a busy one it leaves out the time slices of others.
    """

    def __init__(
        self,
        *,
        threads: Annotated[int, Field(ge=1, le=1024)] = 1,
        batch_size: Annotated[int, Field(ge=1, le=65536)] = 1,
    ):
        self.threads, self.batch_size = threads, batch_size
        self.clock = time.thread_time if threads == 1 else time.perf_counter
        self.where = f"cpu, {threads} thread{'s' * (threads > 1)}, batch {batch_size}, float32"

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Let torch use this many threads, and as many as before afterwards."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def run(self, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> Run:
        """Return a function that runs a copy of `network` once on `inputs` [B, ...]."""
        assert isinstance(network, nn.Module)
        # A copy: the mode, the memory format and the device of the caller's module stay as they are.
        module = copy.deepcopy(network).to("cpu", memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        taken = laid_out(taken.cpu() for taken in inputs)
        return lambda: module(*taken)

    def peak_memory_bytes(self, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> Measurement | Missing:
        """Return the peak of the tensors' storages: the same on every machine, so its spread is 0."""
        assert isinstance(network, nn.Module)
        peak = peak_bytes_cpu(network, inputs)
        how = f"cpu, batch {self.batch_size}, float32; tensor storages, without operators' workspaces"
        return Measurement(float(peak), 0.0, 1, how)

    def energy_counter(self) -> EnergyCounter | Missing:
        """Return the processor's counter."""
        return processor_energy()
