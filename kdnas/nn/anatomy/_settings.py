"""The configuration of a Hugging Face network, set to the sizes of a cut one, where it can express them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdnas.nn.cutting import Anatomy, Axis, Kept, Role
from kdnas.nn.layer_lists import STACKS, stack_of

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_INNER = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "ffn_hidden_size", "d_ff", "d_inner")
_WIDTH = ("hidden_size", "n_embd", "dim", "d_model")
_ALIKE = ("word_embed_proj_dim", "embedding_size", "pooler_hidden_size")
"""How wide the token embedding or the pooler is, where a configuration states that: as wide as the stream, or not."""


def set_hugging_face_sizes(network: nn.Module, anatomy: Anatomy, kept: Kept) -> None:
    """Set the sizes in the network's `config` that one number expresses; those that differ by layer stay as they were.

    A stock configuration has one number of heads and one inner size for all layers, or for all of an encoder and all of
    a decoder; how many layers are left it was set already (`kdnas.nn.layer_lists`). Such a network opens again from its
    own folder; another one is right as it stands in memory, but its configuration does not describe it.
    """
    config = getattr(network, "config", None)
    if config is None:
        return
    gone = anatomy.gone(kept)
    left = [axis for axis in anatomy.axes if axis.block not in gone or not axis.block]
    several = any(hasattr(config, f"{stack}{name}") for stack in STACKS for name in _HEADS)
    for stack in STACKS if several else ("",):
        own = [axis for axis in left if not several or stack_of(axis.name) == stack]
        if (heads := _one_size(own, "heads", kept)) is not None:
            _set_heads(config, heads, stack)
        if (inner := _one_size(own, "inner", kept)) is not None:
            _set(config, _INNER, inner, stack)
    if "width" in kept:
        before = next((getattr(config, name) for name in _WIDTH if hasattr(config, name)), None)
        _set(config, _WIDTH, len(kept["width"]))
        for name in _ALIKE:
            if getattr(config, name, None) == before:
                setattr(config, name, len(kept["width"]))


def _one_size(axes: Sequence[Axis], role: Role, kept: Kept) -> int | None:
    """Return how many units all axes of `role` have; None where they differ, or are whole."""
    own = [axis for axis in axes if axis.role == role]
    sizes = {len(kept[axis.name]) if axis.name in kept else axis.size for axis in own}
    return sizes.pop() if len(sizes) == 1 and any(axis.name in kept for axis in own) else None


def _set_heads(config: Any, units: int, stack: str) -> None:
    """Set the heads; a unit is the group of queries that shares one head of keys and values."""
    name = next((n for n in map(stack.__add__, _HEADS) if isinstance(getattr(config, n, None), int)), None)
    if name is None:
        return
    pairs = getattr(config, "num_key_value_heads", None)
    group = getattr(config, name) // pairs if isinstance(pairs, int) else 1
    if isinstance(pairs, int):
        config.num_key_value_heads = units
    setattr(config, name, units * group)


def _set(config: Any, names: tuple[str, ...], value: int, stack: str = "") -> None:
    for name in map(stack.__add__, names):
        if hasattr(config, name):
            setattr(config, name, value)
            return
