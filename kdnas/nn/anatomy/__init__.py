"""Anatomies: what can be cut out of one kind of loaded network.

A member reads networks of its kind and lists their axes and removable blocks as the records of `kdnas.nn.cutting`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kdnas.nn.anatomy._roles import LayerRoles
from kdnas.nn.cutting import Anatomy, Example
from kdnas.registry import Registry

ANATOMIES: Registry[Callable[[nn.Module, Any], Anatomy | None]] = Registry("anatomy", __name__)
"""Members: `function(network, example) -> Anatomy`, None where the network is of another kind.

`example` is a batch of two samples that the network can be run on: its input, or a tuple of several."""
_LAST = ("convnet", "layers")
"""Asked when nobody else knows the network: listed transformers have convolutions, and layers of any make, too."""

_MOST_SHOWN = 3
"""Reasons that an error gives."""


def read_anatomy(network: nn.Module, example: Example) -> Anatomy:
    """Return the anatomy of `network`. Raises ValueError where nothing of it can be cut, with the reason."""
    why: list[str] = []
    names = ANATOMIES.names()
    for name in (*sorted(set(names) - set(_LAST)), *_LAST):
        try:
            found = ANATOMIES.get(name)(network, example)
        except Exception as error:  # networks of any make are read, whose widths and names may be whatever
            why.append(f"read as {name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        if found is not None and (found.axes or found.depths):
            return found
        why += [f"{part.what}: {part.why}" for part in (found.uncut if found else ())]
    why = why or ["its layers are of no kind that kdnas supports"]
    reasons = f" ({'; '.join(why[:_MOST_SHOWN])}{'; ...' if len(why) > _MOST_SHOWN else ''})"
    kinds = ", ".join(names)
    raise ValueError(f"nothing of a {type(network).__name__} can be cut{reasons}; what kdnas reads: {kinds}")


def layer_roles() -> list[tuple[LayerRoles, bool]]:
    """Return what layers of every kind are made of, and whether their tokens look only back."""
    from kdnas.nn.anatomy import bert, gpt, vit

    looking = [(bert.ROLES, False), (vit.ROLES, False), (gpt.ROLES, True)]
    return [(roles, causal) for kind, causal in looking for roles in kind]
