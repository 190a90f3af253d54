"""The weights of a network as a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdnas import atomic
from kdnas.checksums import content_sum
from kdnas.errors import RunFolderError
from kdnas.faults import reach


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the state dict of `network` to `path` as safetensors, whole or not at all. Raises RunFolderError.

    `metadata` goes into the file's header. Weights that are tied stand there under each of their names.
    """
    # Clones: tied weights share memory, which the format refuses.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    try:
        reach("weights")
        with atomic.replacing(path) as scratch:
            save_file(state, scratch, metadata=None if metadata is None else dict(metadata))
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error


def tensors_sum(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """Return the checksum of tensors by name, and of `texts` with them."""
    parts = {name: value.detach().cpu().contiguous().reshape(-1) for name, value in tensors.items()}
    flat = [(f"{name} {value.dtype}", value.view(torch.uint8).numpy()) for name, value in parts.items()]
    return content_sum([*flat, *((f"text {number}", text.encode()) for number, text in enumerate(texts))])


def load_weights(network: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote into `network`.

    Raises RunFolderError where there is no file, it is damaged, or it holds another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _unusable(path, error) from error


def weights_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a file that `save_weights` wrote. Raises RunFolderError."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{path} cannot be loaded: {str(error).partition(chr(10))[0]}")
