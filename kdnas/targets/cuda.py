"""PyTorch on an NVIDIA GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdnas.core.measurement import Measurement
from kdnas.errors import ConfigError, Problem
from kdnas.nn.memory import peak_bytes_cuda
from kdnas.nn.rows import laid_out
from kdnas.nn.timing import Run
from kdnas.targets import TARGETS, EnergyCounter, Missing, Target
from kdnas.targets._energy import gpu_energy

_WARMUP = 3
_LARGE = 256


@TARGETS.register
class Cuda(Target):
    """PyTorch on a GPU: channels_last, eager or as one CUDA graph, timed from launch to the last kernel's end."""

    variants: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"graph": graph, "batch_size": batch_size} for batch_size in (1, _LARGE) for graph in (False, True)
    )

    def __init__(
        self, *, device: str = "cuda", graph: bool = False, batch_size: Annotated[int, Field(ge=1, le=65536)] = 1
    ):
        if not torch.cuda.is_available():
            raise ConfigError(Problem("target cuda", f"torch {torch.__version__} finds no GPU here"))
        self.device, self.graph, self.batch_size = torch.device(device), graph, batch_size
        mode = "CUDA graph" if graph else "eager"
        self.where = f"{self.device_name}, {mode}, batch {batch_size}, float32"

    @property
    def device_name(self) -> str:
        """The GPU's name."""
        return str(torch.cuda.get_device_name(self.device))

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Make the device current."""
        with torch.cuda.device(self.device), torch.inference_mode():
            yield

    def run(self, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> Run:
        """Return a function that runs a copy of `network` once on `inputs` [B, ...]."""
        assert isinstance(network, nn.Module)
        module = copy.deepcopy(network).to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        taken = laid_out(taken.to(self.device) for taken in inputs)
        launch = self._captured(module, taken) if self.graph else lambda: module(*taken)

        def run() -> None:
            launch()
            torch.cuda.synchronize(self.device)

        return run

    def _captured(self, module: nn.Module, taken: tuple[Tensor, ...]) -> Run:
        """Return a function that replays one pass of `module` on what is `taken`, captured in a CUDA graph."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                module(*taken)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(*taken)

        def replay() -> Tensor:
            graph.replay()
            return output

        # The graph reads the weights and the input where they lie: they live as long as it does.
        replay.holds = module, taken  # type: ignore[attr-defined]
        return replay

    def peak_memory_bytes(self, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> Measurement | Missing:
        """Return weights and input with what the caching allocator handed out at its peak, in an eager pass."""
        assert isinstance(network, nn.Module)
        peak = peak_bytes_cuda(network, inputs, self.device)
        how = f"{torch.cuda.get_device_name(self.device)}, batch {self.batch_size}, float32; allocator's peak"
        return Measurement(float(peak), 0.0, 1, how)

    def energy_counter(self) -> EnergyCounter | Missing:
        """Return the GPU's counter."""
        return gpu_energy(self.device)
