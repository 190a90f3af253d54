"""Which places of a layer's tensors belong to the units of an axis: the ties of linear layers and of norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdnas.nn.cutting import Count, Tie


def runs(units: int, length: int) -> Tensor:
    """Return places [units, length]: unit after unit, each a run of its own."""
    return torch.arange(units * length).reshape(units, length)


def copies(units: int, length: int) -> Tensor:
    """Return places [units, length / units] where all units stand several times, one time after the other."""
    return torch.arange(length).reshape(-1, units).T


def out_ties(name: str, layer: nn.Module, places: Tensor) -> list[Tie]:
    """Return the ties of a layer's outputs: of its weight and its bias."""
    weight = Tie(f"{name}.weight", 1 if _transposed(layer) else 0, places)
    return [weight, Tie(f"{name}.bias", 0, places)] if has(layer, "bias") else [weight]


def in_tie(name: str, layer: nn.Module, places: Tensor) -> Tie:
    """Return the tie of a layer's inputs."""
    return Tie(f"{name}.weight", 0 if _transposed(layer) else 1, places, reads=True)


def norm_ties(name: str, norm: object, places: Tensor) -> list[Tie]:
    """Return the ties of a norm; none where `norm` is no module."""
    if not isinstance(norm, nn.Module):
        return []
    return [Tie(f"{name}.{leaf}", 0, places) for leaf in ("weight", "bias") if has(norm, leaf)]


def bare_norm(name: str, norm: object) -> list[Count]:
    """Return the size that a norm without parameters holds as an attribute."""
    bare = find(norm, "normalized_shape") and not isinstance(getattr(norm, "weight", None), Tensor)
    return [Count(f"{name}.normalized_shape", 1)] if bare and isinstance(norm, nn.Module) else []


def norms_in(layer: nn.Module) -> dict[str, int]:
    """Return by its dotted name how long every norm inside `layer` is."""
    found = {}
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if "norm" not in type(module).__name__.lower() or not name:
            continue
        if isinstance(weight, Tensor) and weight.ndim == 1:
            found[name] = len(weight)
        elif isinstance(shape := getattr(module, "normalized_shape", None), tuple) and len(shape) == 1:
            found[name] = shape[0]
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, GPT-2's transposed one too."""
    return isinstance(module, nn.Linear) or _transposed(module)


def linear(layer: nn.Module, name: str) -> nn.Module:
    """Return the module that is there below `layer`."""
    found = find(layer, name)
    assert isinstance(found, nn.Module), name
    return found


def out_size(layer: nn.Module) -> int:
    """Return how many outputs a layer has."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1 if _transposed(layer) else 0]


def in_size(layer: nn.Module) -> int:
    """Return how many inputs a layer has."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0 if _transposed(layer) else 1]


def find(root: object, name: str) -> object:
    """Return what `name` points to below `root`; None where there is nothing."""
    found: object = root
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


def has(root: nn.Module, name: str) -> bool:
    """Whether `name` points to something below `root`."""
    return find(root, name) is not None


def _transposed(layer: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as [in, out], as GPT-2's does."""
    return hasattr(layer, "nf") and not isinstance(layer, nn.Linear)
