"""The residual stream of a transformer: what flows from layer to layer, and who writes and reads it outside of them.

Outside its layers a transformer embeds, norms and answers. What is as wide as the stream there touches it, whatever it
is called; a cut that is tried out shows where that is not so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from kdnas.nn.anatomy._ties import (
    bare_norm,
    copies,
    find,
    in_size,
    in_tie,
    is_linear,
    norm_ties,
    out_size,
    out_ties,
    runs,
)
from kdnas.nn.cutting import NORM_OVER_CHANNELS, Axis, Count, Example, Tie, in_order

_MOST_COPIES = 4
"""How often the stream may stand side by side where it is answered from, such as the class token and a mean."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class StreamRoles:
    """Who touches the residual stream: full dotted names, those that are there.

    `writes` are layers whose outputs are the stream (embeddings, a patch convolution), `reads` those it is an input of
    (heads, poolers), `norms` lie on it, `tensors` are parameters whose last dimension it is (class tokens, positions).
    """

    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    def below(self, base: str) -> StreamRoles:
        """Return the same roles, their names `base` + name."""
        return StreamRoles(*(tuple(base + name for name in getattr(self, part.name)) for part in fields(self)))

    def merged(self, other: StreamRoles) -> StreamRoles:
        """Return these roles and `other`'s."""
        both = ((getattr(self, part.name), getattr(other, part.name)) for part in fields(self))
        return StreamRoles(*((*mine, *others) for mine, others in both))


def around(network: nn.Module, layers: Sequence[str], size: int, example: Example) -> StreamRoles:
    """Return who touches the stream of width `size` outside the layers called `layers`: what is as wide as it.

    A layer of the same width on both sides, such as BERT's pooler, hands the stream on.
    """
    inside = tuple(f"{name}." for name in layers)
    outside = {name: part for name, part in network.named_modules() if not f"{name}.".startswith(inside)}
    last = last_layer(network, example)
    found: dict[str, list[str]] = {part.name: [] for part in fields(StreamRoles)}
    for name, module in outside.items():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding):
            found["writes"] += [name] if module.embedding_dim == size else []
        elif is_linear(module) or isinstance(module, _CONVOLUTIONS):
            most = _MOST_COPIES if module is last else 1
            if out_size(module) == size and module is not last:
                found["writes"].append(name)
            if is_linear(module) and in_size(module) in range(size, most * size + 1, size):
                found["reads"].append(name)
        elif isinstance(weight, Tensor) and weight.ndim == 1:
            found["norms"] += [name] if len(weight) in (size, *_before(last, size)) else []
        elif find(module, "normalized_shape") == (size,):
            found["norms"].append(name)
        else:
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            prefix = f"{name}." if name else ""
            found["tensors"] += [
                prefix + leaf
                for leaf, tensor in own
                if tensor.ndim and tensor.shape[-1] == size and tensor.is_floating_point()  # no table of places
            ]
    return StreamRoles(*(tuple(names) for names in found.values()))


def _before(last: nn.Module, size: int) -> tuple[int, ...]:
    """Return the width of what the last layer reads, where the stream stands several times in it."""
    width = in_size(last) if is_linear(last) else 0
    return (width,) if width in range(size, _MOST_COPIES * size + 1, size) else ()


def stream_ties(network: nn.Module, stream: StreamRoles, size: int) -> tuple[list[Tie], list[Count]]:
    """Return what goes with the units of the stream of width `size`, and the numbers that follow it."""
    places = runs(size, 1)
    ties: list[Tie] = []
    counts: list[Count] = []
    for part in stream.writes:
        module = find(network, part)
        if isinstance(module, nn.Embedding):
            ties.append(Tie(f"{part}.weight", 1, places))
        elif isinstance(module, nn.Module):
            ties += out_ties(part, module, places)
    for part in stream.reads:
        module = find(network, part)
        if isinstance(module, nn.Module) and isinstance(getattr(module, "weight", None), Tensor):
            ties.append(in_tie(part, module, copies(size, in_size(module))))
    for part in stream.norms:
        norm = find(network, part)
        weight = getattr(norm, "weight", None)
        ties += norm_ties(part, norm, copies(size, len(weight)) if isinstance(weight, Tensor) else places)
        counts += bare_norm(part, norm)
    for part in stream.tensors:
        tensor = find(network, part)
        if isinstance(tensor, Tensor):
            ties.append(Tie(part, tensor.ndim - 1, places))
    return ties, counts


def stream_axis(name: str, size: int, ties: Sequence[Tie], counts: Sequence[Count]) -> Axis:
    """Return the axis of a stream."""
    return Axis(name, "width", size, tuple(ties), tuple(counts), inexact=NORM_OVER_CHANNELS)


def last_layer(network: nn.Module, example: Example) -> nn.Module:
    """Return the layer with weights that ran last: its outputs are the network's."""
    ran: list[nn.Module] = []
    layers = [module for module in network.modules() if is_linear(module) or isinstance(module, _CONVOLUTIONS)]
    handles = [layer.register_forward_hook(lambda layer, inputs, outputs: ran.append(layer)) for layer in layers]
    try:
        with torch.no_grad():
            network(*in_order(example))
    finally:
        for handle in handles:
            handle.remove()
    return ran[-1]
