"""What the transformers have in common: layers that attend with whole heads, then think with an MLP.

A kind names, as dotted names inside one layer, who plays which role. From that follow the axes: heads (whole groups of
queries that share keys and values), MLP neurons, and the residual stream's width.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdnas.nn.anatomy._stream import StreamRoles, around, stream_axis, stream_ties
from kdnas.nn.anatomy._ties import (
    bare_norm,
    copies,
    find,
    has,
    in_size,
    in_tie,
    linear,
    norm_ties,
    norms_in,
    out_size,
    out_ties,
    runs,
)
from kdnas.nn.cutting import NORM_OVER_CHANNELS, Anatomy, Axis, Count, Depth, Example, Finish, Tie, Uncut


@dataclass(frozen=True)
class LayerRoles:
    """Who does what in one layer, by dotted names inside it.

    `qkv` is one layer for queries, keys and values, or three; none, where they are no layers. `up` are the layers into
    the MLP's neurons (two where it is gated, or one that is twice as long), `down` the one out of them. `head_size` is
    where the layer states how wide a head is; where it does not, `heads` is where it states how many there are.
    `counts` list what must follow the number of heads: an attribute, and what it counts: heads, those of keys and
    values, or their width.
    """

    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    head_size: str = ""
    heads: str = ""
    counts: tuple[tuple[str, str], ...] = ()
    """(attribute, "heads", "groups" or "width")."""
    packed: Literal["kinds", "heads"] = "kinds"
    """How one layer for queries, keys and values holds them: all of a kind after another, or all of a head."""
    scales: tuple[str, ...] = ()
    """Parameters of the layer as long as the residual stream is wide, such as LayerScale's."""
    head_norms: tuple[str, ...] = ()
    """Norms over all heads at once, where there are any; those over a head each stay as they are."""
    head_tables: tuple[str, ...] = ()
    """Parameters with a column for every head, such as a table of relative positions."""
    neuron_norms: tuple[str, ...] = ()
    """Norms over the MLP's neurons."""
    uncuttable_without: str = ""
    """An attribute that a layer must have for its heads to be cut: the width of its attention, not only its input's."""
    heads_stay: str = ""
    """Why heads are never cut; empty: they may be."""
    width_stays: str = ""
    """Why the residual stream is never cut; empty: it may be."""

    causal: bool = False
    """Whether these are layers of kdnas's own with causal attention."""

    def fits(self, layer: nn.Module) -> bool:
        """Whether every role is there in `layer`."""
        return (
            all(isinstance(find(layer, name), nn.Module) for name in (*self.qkv, self.out, *self.up, self.down))
            and all(has(layer, name) for name in self.head_tables)
            and isinstance(find(layer, self.head_size or self.heads), int)
            and bool(find(layer, "attention.causal")) == self.causal
        )

    def size_of_heads(self, layer: nn.Module) -> int:
        """Return how wide a head of `layer` is."""
        declared = find(layer, self.head_size or self.heads)
        assert isinstance(declared, int)  # in a layer that fits
        return declared if self.head_size else in_size(linear(layer, self.out)) // declared


HUGGING_FACE_VIT = LayerRoles(
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.o_proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    head_size="attention.head_dim",
    counts=(("attention.num_attention_heads", "heads"),),
    scales=("lambda_1", "lambda_2", "layer_scale1.lambda1", "layer_scale2.lambda1"),
)
"""Also those of kdnas's own transformers (`kdnas.nn.transformers`)."""


def transformer(
    kind: str, network: nn.Module, roles: LayerRoles, example: Example, *, finish: Finish
) -> Anatomy | None:
    """Return the anatomy of a transformer whose layers play `roles`; None where no layer does, or there are stages."""
    stages = _stages(network, roles)
    if len(stages) != 1:
        return None
    paths = next(iter(stages.values()))
    size = out_size(linear(network.get_submodule(paths[0]), roles.out))
    stream = StreamRoles() if roles.width_stays else around(network, paths, size, example)
    return staged_transformer(kind, network, roles, [stream], finish=finish)


def _stages(network: nn.Module, roles: LayerRoles) -> dict[str, list[str]]:
    """Return by their container the layers that play `roles`."""
    stages: dict[str, list[str]] = {}
    for path, module in network.named_modules():
        if roles.fits(module):
            stages.setdefault(path.rpartition(".")[0], []).append(path)
    return stages


def staged_transformer(
    kind: str,
    network: nn.Module,
    roles: LayerRoles,
    streams: Sequence[StreamRoles],
    *,
    finish: Finish,
) -> Anatomy | None:
    """Return the anatomy of a transformer of stages, each with a residual stream of its own, in their order.

    A stage's layers are those of one container. None where no layer plays `roles`, or they are in other containers than
    there are `streams`.
    """
    stages = _stages(network, roles)
    if not stages or len(stages) != len(streams):
        return None
    axes, depths, whole = list[Axis](), list[Depth](), list[Uncut]()
    for number, ((container, paths), stream) in enumerate(zip(stages.items(), streams, strict=True), 1):
        found = list[Axis]()
        for path in paths:
            layer = network.get_submodule(path)
            why = roles.heads_stay
            if roles.uncuttable_without and not has(layer, roles.uncuttable_without):
                why = "its attention takes the width of its heads from that of its input"
            if why:
                whole.append(Uncut(f"{path}.heads", why))
            else:
                found.append(heads_axis(path, layer, roles))
            found.append(neurons_axis(path, layer, roles))
        name = "width" if len(stages) == 1 else f"{container.rpartition('.')[0]}.width"
        if roles.width_stays:
            whole.append(Uncut(name, roles.width_stays))
        else:
            found.append(width_axis(name, network, [(path, roles) for path in paths], stream))
        axes += [dataclasses.replace(axis, stage=number) for axis in found]
        depths.append(Depth(f"{container}.depth", tuple(paths), tuple(evenly_spaced(len(paths))), stage=number))
    return Anatomy(kind, tuple(axes), tuple(depths), tuple(whole), finish)


def heads_axis(path: str, layer: nn.Module, roles: LayerRoles) -> Axis:
    """Return the axis of a layer's heads, a unit being the queries that share one head of keys and values."""
    size = roles.size_of_heads(layer)
    out = linear(layer, roles.out)
    queries = in_size(out) // size
    ties: list[Tie] = []
    if len(roles.qkv) == 1:
        packed = linear(layer, roles.qkv[0])
        units = (out_size(packed) // size - queries) // 2  # heads of keys, and of values
        ties += out_ties(f"{path}.{roles.qkv[0]}", packed, _packed(queries, units, size, roles))
    else:
        keys = linear(layer, roles.qkv[1])
        units = out_size(keys) // size
        for name in roles.qkv:
            part = linear(layer, name)
            ties += out_ties(f"{path}.{name}", part, runs(units, out_size(part) // units))
    ties.append(in_tie(f"{path}.{roles.out}", out, runs(units, in_size(out) // units)))
    per_unit = {"heads": queries // units, "groups": 1, "width": queries // units * size}
    counts = tuple(Count(f"{path}.{name}", per_unit[what]) for name, what in roles.counts if has(layer, name))
    norms = [tie for name in roles.head_norms for tie in _norm_over_heads(f"{path}.{name}", layer, name, units, size)]
    tables = [Tie(f"{path}.{name}", 1, runs(units, queries // units)) for name in roles.head_tables]
    return Axis(
        f"{path}.heads",
        "heads",
        units,
        (*ties, *norms, *tables),
        counts,
        inexact=NORM_OVER_CHANNELS if norms else "",
        block=path,
    )


def _packed(queries: int, groups: int, size: int, roles: LayerRoles) -> Tensor:
    """Return the places [groups, k] of every group of heads in one layer for queries, keys and values."""
    if roles.packed == "heads":
        return runs(groups, (queries // groups + 2) * size)
    keys = runs(groups, size) + queries * size
    return torch.cat([runs(groups, queries // groups * size), keys, keys + groups * size], dim=1)


def _norm_over_heads(path: str, layer: nn.Module, name: str, units: int, size: int) -> list[Tie]:
    """Return the ties of a norm, none where it is over one head alone."""
    weight = getattr(find(layer, name), "weight", None)
    if not isinstance(weight, Tensor) or weight.numel() == size or weight.ndim != 1:
        return []
    return norm_ties(path, find(layer, name), runs(units, len(weight) // units))


def neurons_axis(path: str, layer: nn.Module, roles: LayerRoles) -> Axis:
    """Return the axis of the neurons of a layer's MLP."""
    down = linear(layer, roles.down)
    size = in_size(down)
    places = runs(size, 1)
    ups = [(f"{path}.{name}", linear(layer, name)) for name in roles.up]
    ties = [tie for name, up in ups for tie in out_ties(name, up, copies(size, out_size(up)))]
    ties.append(in_tie(f"{path}.{roles.down}", down, places))
    norms = [tie for name in roles.neuron_norms for tie in norm_ties(f"{path}.{name}", find(layer, name), places)]
    return Axis(
        f"{path}.inner", "inner", size, (*ties, *norms), inexact=NORM_OVER_CHANNELS if norms else "", block=path
    )


def width_axis(name: str, network: nn.Module, layers: Sequence[tuple[str, LayerRoles]], stream: StreamRoles) -> Axis:
    """Return the axis of the residual stream that `layers` share, called `name`; `stream` is who else touches it."""
    path, roles = layers[0]
    size = out_size(linear(network.get_submodule(path), roles.out))
    places = runs(size, 1)
    ties: list[Tie] = []
    counts: list[Count] = []
    for path, roles in layers:
        layer = network.get_submodule(path)
        for part in (*roles.qkv, *roles.up):
            ties.append(in_tie(f"{path}.{part}", linear(layer, part), places))
        for part in dict.fromkeys(filter(None, (roles.out, roles.down))):  # one, without attention or without an MLP
            ties += out_ties(f"{path}.{part}", linear(layer, part), places)
        apart = {*roles.head_norms, *roles.neuron_norms}
        for part in (name for name, length in norms_in(layer).items() if length == size and name not in apart):
            ties += norm_ties(f"{path}.{part}", find(layer, part), places)
            counts += bare_norm(f"{path}.{part}", find(layer, part))
        ties += [Tie(f"{path}.{part}", 0, places) for part in roles.scales if has(layer, part)]
    others, further = stream_ties(network, stream, size)
    return stream_axis(name, size, [*ties, *others], [*counts, *further])


def evenly_spaced(layers: int) -> Iterator[int]:
    """Yield layers so that every prefix of the order is spread evenly: last, first, middle, ... (LayerDrop)."""
    ends = [layers - 1, 0] if layers > 1 else [0]
    yield from ends
    done = set(ends)
    for parts in itertools.count(2):
        if len(done) >= layers:
            return
        for part in range(1, parts):
            place = round(part * (layers - 1) / parts)
            if place not in done:
                done.add(place)
                yield place
