"""What the layers of a transformer attend with: their queries, keys and values, read off the projections by hooks.

Nothing of the network is changed: it may go on attending by whatever fused kernel. What is computed from them is exact
where nothing stands between the projections and the attention, as in BERT, DistilBERT, ViT and GPT-2; rotary positions
and norms of queries and keys stand there.

Shapes: B batch, N tokens, h heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class AttentionShape:
    """The widths of one layer's queries, keys and values; `heads` of its queries."""

    tokens: int
    heads: int
    queries: int
    keys: int
    values: int
    causal: bool = False
    plain: bool = True
    """Whether the layer attends with these very queries and keys."""


@dataclass(frozen=True)
class Projections:
    """Queries [B, N, h * d], keys and values [B, N, g * d] of one layer with h heads in g groups."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    heads: int
    causal: bool = False
    plain: bool = True

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        return self.queries, self.keys, self.values

    @property
    def shape(self) -> AttentionShape:
        """Their widths."""
        queries, keys, values = (tensor.shape[-1] for tensor in self.tensors)
        return AttentionShape(self.queries.shape[1], self.heads, queries, keys, values, self.causal, self.plain)

    def scores(self) -> Tensor:
        """Return q k / sqrt(d) [B, h, N, N], before any mask and softmax."""
        queries = split_heads(self.queries, self.heads)
        width = queries.shape[-1]
        keys = split_heads(self.keys, self.keys.shape[-1] // width)
        keys = keys.repeat_interleave(self.heads // keys.shape[1], dim=1)
        return queries @ keys.transpose(-1, -2) / width**0.5


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """Return [B, N, heads * d] as [B, heads, N, d]."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class AttentionLayer:
    """One layer: its dotted name, its projections (one for all three, or three), and its heads."""

    path: str
    projections: tuple[nn.Module, ...]
    width: int
    """Of a head."""
    causal: bool
    plain: bool


def attention_layers(network: nn.Module) -> tuple[AttentionLayer, ...]:
    """Return the layers of a transformer in their order; empty where kdnas recognises none in `network`."""
    from kdnas.nn.anatomy import layer_roles  # which stands on modules that stand on this one

    rotary = any("rotary" in type(part).__name__.lower() for part in network.modules())
    for roles, causal in layer_roles():
        found = [(path, part) for path, part in network.named_modules() if roles.fits(part)]
        if found:
            return tuple(
                AttentionLayer(
                    path,
                    tuple(layer.get_submodule(name) for name in roles.qkv),
                    int(_value(layer, roles.head_size)),
                    causal,
                    not rotary and not _normed(layer),
                )
                for path, layer in found
            )
    return ()


def _value(layer: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(layer.get_submodule(path), leaf)


def _normed(layer: nn.Module) -> bool:
    """Whether queries and keys are normed after their projections."""
    parts = [part for name, part in layer.named_modules() if name.endswith(("q_norm", "k_norm"))]
    return any(not isinstance(part, nn.Identity) for part in parts)


class AttentionTaps:
    """Hooks that keep what the projections of every layer gave last."""

    def __init__(self, network: nn.Module):
        self._layers = attention_layers(network)
        self._given: dict[tuple[int, int], Tensor] = {}

    def hooks(self) -> list[RemovableHandle]:
        """Begin to listen, and return what ends it."""
        return [
            projection.register_forward_hook(self._keep(place, part))
            for place, layer in enumerate(self._layers)
            for part, projection in enumerate(layer.projections)
        ]

    def taken(self) -> tuple[Projections, ...]:
        """Return what the last forward pass gave, layer by layer."""
        return tuple(self._taken())

    def _taken(self) -> Iterator[Projections]:
        for place, layer in enumerate(self._layers):
            given = [self._given[place, part] for part in range(len(layer.projections))]
            queries, keys, values = given if len(given) == 3 else given[0].chunk(3, dim=-1)
            heads = queries.shape[-1] // layer.width
            yield Projections(queries, keys, values, heads, layer.causal, layer.plain)

    def release(self) -> None:
        """Forget the last pass."""
        self._given.clear()

    def _keep(self, place: int, part: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._given[place, part] = output

        return hook


def causal_mask(tokens: int, device: torch.device) -> Tensor:
    """Return bool [N, N], True where a token may look: at itself and those before it."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
