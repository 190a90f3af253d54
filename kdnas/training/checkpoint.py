"""The checkpoint of an unfinished training: one safetensors file that continues it exactly.

Tensors: network, adapters, optimizer state and random-number states. Scalars stand as JSON in the file's header. The
file is replaced whole after each epoch, so a killed process leaves the last complete one. The header holds a checksum
of all the rest, which is compared whenever the file is read. Nothing in it is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdnas import atomic
from kdnas.errors import CheckpointError, RunFolderError
from kdnas.nn.weights import tensors_sum

_FORMAT = "kdnas training 1"


@dataclass(frozen=True)
class _Header:
    """What of a training is no tensor."""

    identity: str
    progress: Mapping[str, Any]
    """As the training wrote it: plain JSON data."""
    optimizer: Mapping[str, Any]
    """The scalars of the optimizer's state."""


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    identity: str,
    progress: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Write the state of a training to `path`, atomically.

    `modules` are saved under their names; `identity` is a hash of all that decides the training; `progress` is plain
    JSON data. Raises RunFolderError where the file cannot be written.
    """
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            elif value is not None:
                scalars[f"{index}/{key}"] = value
    tensors["random/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    header = _Header(identity, progress, scalars)
    # Clones: tied weights share memory, which the format refuses, and channels-last weights are not contiguous.
    flat = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as scratch:
            state = json.dumps(asdict(header))
            save_file(flat, scratch, metadata={"format": _FORMAT, "state": state, "sum": tensors_sum(flat, state)})
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"the checkpoint {path} cannot be written: {error}") from error


def load_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    identity: str,
    device: torch.device,
) -> Mapping[str, Any]:
    """Restore a training from `path` in place and return its progress.

    Raises CheckpointError when the file is damaged, is no checkpoint of a training, or belongs to another training.
    """
    with _naming_damage(path):
        header, tensors = _read(path)
        if header.identity != identity:
            raise CheckpointError(
                f"the checkpoint {path} belongs to another training (student, recipe, teacher, data or seed changed); "
                "delete it to start anew"
            )
        _restore_modules(modules, tensors)
        _restore_optimizer(optimizer, tensors, header.optimizer)
        torch.set_rng_state(tensors["random/cpu"])
        if device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"], device)
    return header.progress


def load_modules(path: Path, modules: Mapping[str, nn.Module]) -> str:
    """Restore only the modules of a training from `path`, in place, and return its identity.

    Raises CheckpointError when the file is damaged, no checkpoint of a training, or one of other modules.
    """
    with _naming_damage(path):
        header, tensors = _read(path)
        _restore_modules(modules, tensors)
    return header.identity


def epochs_done(path: Path) -> int:
    """Return how many epochs of its training a checkpoint holds, 0 where there is none. Raises CheckpointError."""
    if not path.exists():
        return 0
    with _naming_damage(path), safe_open(path, framework="pt", device="cpu") as file:
        return len(_header(path, file.metadata()).progress["history"])


def discard_damaged(path: Path) -> str:
    """Remove the checkpoint at `path` where it is damaged, and return in words what is wrong; empty where nothing is.

    For trainings that are short enough to begin anew unasked.
    """
    if not path.exists():
        return ""
    try:
        with _naming_damage(path):
            _read(path)
    except CheckpointError as error:
        path.unlink(missing_ok=True)
        return str(error).partition(";")[0]
    return ""


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Raise CheckpointError instead of what a file raises that is not what it should be."""
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError, RecursionError) as error:
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"the checkpoint {path} is damaged ({first_line}); delete it to start anew") from error


def _read(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        header = _header(path, metadata)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    if metadata.get("sum") not in (None, tensors_sum(tensors, metadata["state"])):  # earlier versions wrote none
        raise ValueError("its content is not what was written")
    return header, tensors


def _header(path: Path, metadata: Mapping[str, str] | None) -> _Header:
    if not metadata or metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not the checkpoint of a training")
    return _Header(**json.loads(metadata["state"]))


def _restore_modules(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    for name, module in modules.items():
        own = {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
        module.load_state_dict(own)


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if not key.startswith("optimizer/"):
            continue
        _, index, name = key.split("/")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # Fused kernels walk parameter and state side by side: the memory layout must be the parameter's.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    for key, scalar in scalars.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = scalar
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
