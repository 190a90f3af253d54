"""Peak memory of one forward pass: parameters, buffers, the input, and the most activations alive at once.

On a CPU it is the sum of the tensors' storages, followed from creation to release (operators' own workspaces are not
seen): the same on every machine. On CUDA the activations are what the caching allocator handed out at its peak.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdnas.core.measurement import Measurement
from kdnas.core.objective import Quantity
from kdnas.core.task import ImageTask
from kdnas.costs import COSTS, MeasuredCost


@COSTS.register
class PeakMemoryBytes(MeasuredCost):
    """Peak bytes of parameters, buffers and live activations in one float32 inference pass."""

    quantity = Quantity("peak_memory_bytes", "bytes", "minimize", "measured")

    def __init__(self, device: torch.device, *, batch_size: Annotated[int, Field(ge=1, le=65536)] = 1):
        super().__init__(device)
        self._batch_size = batch_size

    def measure(self, module: nn.Module, task: ImageTask, calibration: Mapping[str, Any]) -> Measurement:
        """Return the peak bytes of `module`; deterministic on a CPU, so its spread is 0."""
        shape = (self._batch_size, *task.input_shape)
        on_cuda = self.device.type == "cuda"
        peak = _peak_cuda(module, shape, self.device) if on_cuda else _peak_cpu(module, shape)
        where = torch.cuda.get_device_name(self.device) if on_cuda else "cpu"
        how = "allocator's peak" if on_cuda else "tensor storages, without operators' workspaces"
        return Measurement(float(peak), 0.0, 1, f"{where}, batch {self._batch_size}, float32; {how}")


def _peak_cpu(module: nn.Module, shape: tuple[int, ...]) -> int:
    module = copy.deepcopy(module).to("cpu", torch.float32).eval()
    with torch.no_grad(), _LiveStorages() as live:
        live.add(itertools.chain(module.parameters(), module.buffers()))
        module(torch.zeros(shape))
    return live.peak


def _peak_cuda(module: nn.Module, shape: tuple[int, ...], device: torch.device) -> int:
    module = copy.deepcopy(module).to(device, torch.float32).eval()
    images = torch.zeros(shape, device=device)
    with torch.no_grad():
        module(images)  # the libraries' own lasting buffers appear in a first pass and are no part of the student
        torch.cuda.synchronize(device)
        resting = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        module(images)
        torch.cuda.synchronize(device)
    activations = torch.cuda.max_memory_allocated(device) - resting
    held = {tensor.untyped_storage()._cdata: tensor for tensor in (images, *module.parameters(), *module.buffers())}
    return activations + sum(tensor.untyped_storage().nbytes() for tensor in held.values())


class _LiveStorages(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive; every operator's results pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def add(self, tensors: Any) -> None:
        """Count the storages of `tensors` until they are released."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, storage.nbytes()).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(tree_leaves(result))
        return result
