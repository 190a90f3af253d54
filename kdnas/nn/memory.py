"""Peak memory of one forward pass: parameters, buffers, the input, and the most activations alive at once."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes_cpu(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Return the peak bytes of a copy of `module` on copies of `inputs` [B, ...], in float32 on the CPU.

    The sum of the tensors' storages, followed from creation to release (operators' own workspaces are not seen): the
    same on every machine.
    """
    module = copy.deepcopy(module).to("cpu", torch.float32).eval()
    with torch.no_grad(), _LiveStorages() as live:
        live.add(itertools.chain(module.parameters(), module.buffers()))
        module(*[taken.clone() for taken in inputs])
    return live.peak


def peak_bytes_cuda(module: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> int:
    """Return the peak bytes of a copy of `module` on `device`; the caching allocator reports those of activations."""
    module = copy.deepcopy(module).to(device, torch.float32).eval()
    taken = [each.to(device) for each in inputs]
    with torch.no_grad():
        module(*taken)  # the libraries' own lasting buffers appear in a first pass and are no part of the student
        torch.cuda.synchronize(device)
        resting = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        module(*taken)
        torch.cuda.synchronize(device)
    activations = torch.cuda.max_memory_allocated(device) - resting
    held = {tensor.untyped_storage()._cdata: tensor for tensor in (*taken, *module.parameters(), *module.buffers())}
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
