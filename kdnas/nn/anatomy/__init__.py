"""Anatomies: what can be cut out of one kind of loaded network.

A member reads networks of its kind and lists their axes and removable blocks as the records of `kdnas.nn.cutting`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kdnas.nn.anatomy._roles import LayerRoles
from kdnas.nn.cutting import Anatomy, Example
from kdnas.registry import Registry

ANATOMIES: Registry[Callable[[nn.Module, Any], Anatomy | None]] = Registry("anatomy", __name__)
"""Members: `function(network, example) -> Anatomy`, None where the network is of another kind.

`example` is a batch of two samples that the network can be run on: its input, or a tuple of several."""
_LAST = ("layers", "convnet")
"""Asked when nobody else knows the network: listed transformers have layers of any make, and convolutions, too."""

_MOST_SHOWN = 3
"""Reasons that an error gives."""


def read_anatomy(network: nn.Module, example: Example) -> Anatomy:
    """Return the anatomy of `network`. Raises ValueError where nothing of it can be cut, with the reason."""
    why: list[str] = []
    second: Anatomy | None = None
    names = ANATOMIES.names()
    for name in (*sorted(set(names) - set(_LAST)), *_LAST):
        try:
            found = ANATOMIES.get(name)(network, example)
        except Exception as error:  # networks of any make are read, whose widths and names may be whatever
            why.append(f"read as {name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        if found is not None and found.parts and (name != _LAST[0] or _is_one_stream(found, network, example)):
            return found if second is None or _reach(found, network) > _reach(second, network) else second
        second = found if found is not None and found.parts else second
        why += [f"{part.what}: {part.why}" for part in (found.uncut if found else ())]
    if second is not None:
        return second
    why = why or ["its layers are of no kind that kdnas supports"]
    reasons = f" ({'; '.join(why[:_MOST_SHOWN])}{'; ...' if len(why) > _MOST_SHOWN else ''})"
    kinds = ", ".join(names)
    raise ValueError(f"nothing of a {type(network).__name__} can be cut{reasons}; what kdnas reads: {kinds}")


def _is_one_stream(found: Anatomy, network: nn.Module, example: Example) -> bool:
    """Whether a network of layers is nothing else: one of images is a convnet rather where convolutions stand in them.

    That also holds where they do between the layers, whose stages have several widths. What gates the channels of a CNN
    looks like layers, too.
    """
    if not isinstance(example, Tensor) or not example.is_floating_point():
        return True
    layers = [network.get_submodule(block) for depth in found.depths for block in depth.blocks]
    inside = any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for layer in layers for part in layer.modules())
    return not inside and any(axis.role == "width" for axis in found.axes)


def _reach(found: Anatomy, network: nn.Module) -> int:
    """Return how many parameters of `network` the axes of `found` cut."""
    tied = {tie.tensor for axis in found.axes for tie in axis.ties}
    return sum(parameter.numel() for name, parameter in network.named_parameters() if name in tied)


def layer_roles() -> list[tuple[LayerRoles, bool]]:
    """Return what layers of every kind are made of, and whether their tokens look only back."""
    from kdnas.nn.anatomy import bert, gpt, vit

    looking = [(bert.ROLES, False), (vit.ROLES, False), (gpt.ROLES, True)]
    return [(roles, causal) for kind, causal in looking for roles in kind]
