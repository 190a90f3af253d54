"""The configuration of a Hugging Face network, set to the sizes of a cut one, where it can express them."""

from __future__ import annotations

from torch import nn

from kdnas.nn.cutting import Kept
from kdnas.nn.layer_lists import layers_of

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_INNER = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "ffn_hidden_size")
_WIDTH = ("hidden_size", "n_embd", "dim")

_WORDS = "word_embed_proj_dim"
"""How wide the token embedding is, where a configuration states that: as wide as the stream, or projected."""


def set_hugging_face_sizes(network: nn.Module, kept: Kept) -> None:
    """Set the sizes in the network's `config` that one number expresses; those that differ by layer stay as they were.

    A stock configuration has one number of heads and one inner size for all layers; how many layers are left it was
    set already (`kdnas.nn.layer_lists`). Such a network opens again from its
    own folder; another one is right as it stands in memory, but its configuration does not describe it.
    """
    config = getattr(network, "config", None)
    if config is None:
        return
    layers = layers_of(config) or 0
    heads = [len(units) for name, units in kept.items() if name.endswith(".heads")]
    inner = [len(units) for name, units in kept.items() if name.endswith(".inner")]
    if len(set(heads)) == 1 and len(heads) >= layers:  # in every layer, gone or not
        _set_heads(config, heads[0])
    if len(set(inner)) == 1 and len(inner) >= layers:
        _set(config, _INNER, inner[0])
    if "width" in kept:
        before = next((getattr(config, name) for name in _WIDTH if hasattr(config, name)), None)
        _set(config, _WIDTH, len(kept["width"]))
        if getattr(config, _WORDS, None) == before:
            setattr(config, _WORDS, len(kept["width"]))


def _set_heads(config: object, units: int) -> None:
    """Set the heads; a unit is the group of queries that shares one head of keys and values."""
    name = next((name for name in _HEADS if isinstance(getattr(config, name, None), int)), None)
    if name is None:
        return
    pairs = getattr(config, "num_key_value_heads", None)
    group = getattr(config, name) // pairs if isinstance(pairs, int) else 1
    if isinstance(pairs, int):
        config.num_key_value_heads = units  # type: ignore[attr-defined]
    setattr(config, name, units * group)


def _set(config: object, names: tuple[str, ...], value: int) -> None:
    for name in names:
        if hasattr(config, name):
            setattr(config, name, value)
            return
