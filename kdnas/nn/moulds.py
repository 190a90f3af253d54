"""Copies of one module again and again, without its tensors: several times as fast as `copy.deepcopy`."""

from __future__ import annotations

import copy
import io
import pickle
import types
from typing import Any

from torch import Tensor, nn

_SHARED = (Tensor, type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
"""What copies have in common: tensors, and what `copy.deepcopy` takes for atomic."""


class Mould:
    """A module from which copies are cast that share its tensors and nothing else.

    It is written down once, in memory, and read again for each copy; what cannot be written down is copied as it
    stands.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._shared: list[Any] = []
        written = io.BytesIO()
        try:
            _Writing(written, self._shared).dump(module)
            self._written: bytes | None = written.getvalue()
        except Exception:  # a module may hold anything: a lock, a generator
            self._written = None

    def cast(self) -> nn.Module:
        """Return a new copy."""
        if self._written is None:
            tensors = [*self._module.parameters(), *self._module.buffers()]
            return copy.deepcopy(self._module, {id(tensor): tensor for tensor in tensors})
        module: nn.Module = _Reading(io.BytesIO(self._written), self._shared).load()
        return module


class _Writing(pickle.Pickler):
    def __init__(self, file: io.BytesIO, shared: list[Any]):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._shared = shared
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        """Return the place of `obj` among what is shared; None: it is written down."""
        if not isinstance(obj, _SHARED):
            return None
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self._shared)
            self._shared.append(obj)
        return self._places[id(obj)]


class _Reading(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: list[Any]):
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, pid: int) -> Any:
        """Return what is shared at a place."""
        return self._shared[pid]
