"""The weights of a network as a safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from kdnas import atomic
from kdnas.errors import RunFolderError


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state dict of `network` to `path` as safetensors, whole or not at all. Raises RunFolderError."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    try:
        with atomic.replacing(path) as scratch:
            save_file(state, scratch)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error
