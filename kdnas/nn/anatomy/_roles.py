"""What the transformers have in common: layers that attend with whole heads, then think with an MLP.

A kind names, as dotted names inside one layer, who plays which role. From that follow the axes: heads (whole groups of
queries that share keys and values), MLP neurons, and the residual stream's width.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from kdnas.nn.cutting import NORM_OVER_CHANNELS, Anatomy, Axis, Count, Depth, Finish, Tie, Uncut


@dataclass(frozen=True)
class LayerRoles:
    """Who does what in one layer, by dotted names inside it.

    `qkv` is one layer for queries, keys and values, or three; none, where they are no layers. `up` are the layers into
    the MLP's neurons (two where it is gated, or one that is twice as long), `down` the one out of them. `head_size` is
    where the layer says how wide a head is; where it does not, `heads` is where it says how many there are. `counts`
    say what must follow the number of heads: an attribute, and what it counts: heads, those of keys and values, or
    their width.
    """

    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    norms: tuple[str, ...]
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
    """An attribute that a layer must have for its heads to be cut: the width of its attention, beside its input's."""
    heads_stay: str = ""
    """Why heads are never cut; empty: they may be."""
    width_stays: str = ""
    """Why the residual stream is never cut; empty: it may be."""

    causal: bool = False
    """Whether these are layers of kdnas's own that say that their tokens look only back."""

    def fits(self, layer: nn.Module) -> bool:
        """Whether every role is there in `layer`."""
        return (
            all(isinstance(_find(layer, name), nn.Module) for name in (*self.qkv, self.out, *self.up, self.down))
            and all(_has(layer, name) for name in self.head_tables)
            and isinstance(_find(layer, self.head_size or self.heads), int)
            and bool(_find(layer, "attention.causal")) == self.causal
        )

    def size_of_heads(self, layer: nn.Module) -> int:
        """Return how wide a head of `layer` is."""
        declared = _find(layer, self.head_size or self.heads)
        assert isinstance(declared, int)  # in a layer that fits
        return declared if self.head_size else _in_size(_linear(layer, self.out)) // declared


HUGGING_FACE_VIT = LayerRoles(
    qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    out="attention.o_proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    norms=("layernorm_before", "layernorm_after"),
    head_size="attention.head_dim",
    counts=(("attention.num_attention_heads", "heads"),),
)
"""Also those of kdnas's own transformers (`kdnas.nn.transformers`)."""


@dataclass(frozen=True)
class StreamRoles:
    """Who else touches the residual stream, outside the layers: full dotted names, those that are there.

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


def transformer(
    kind: str,
    network: nn.Module,
    roles: LayerRoles,
    stream: StreamRoles,
    *,
    finish: Finish,
) -> Anatomy | None:
    """Return the anatomy of a transformer whose layers play `roles`; None where no layer does, or there are stages."""
    return staged_transformer(kind, network, roles, [stream], finish=finish)


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
    stages: dict[str, list[str]] = {}
    for path, module in network.named_modules():
        if roles.fits(module):
            stages.setdefault(path.rpartition(".")[0], []).append(path)
    if not stages or len(stages) != len(streams):
        return None
    axes, depths, whole = list[Axis](), list[Depth](), list[Uncut]()
    for number, ((container, paths), stream) in enumerate(zip(stages.items(), streams, strict=True), 1):
        found = list[Axis]()
        for path in paths:
            layer = network.get_submodule(path)
            why = roles.heads_stay
            if roles.uncuttable_without and not _has(layer, roles.uncuttable_without):
                why = "its attention takes the width of its heads from that of its input"
            if why:
                whole.append(Uncut(f"{path}.heads", why))
            else:
                found.append(_heads(path, layer, roles))
            found.append(_neurons(path, layer, roles))
        name = "width" if len(stages) == 1 else f"{container.rpartition('.')[0]}.width"
        if roles.width_stays:
            whole.append(Uncut(name, roles.width_stays))
        else:
            found.append(_width(name, network, paths, roles, stream))
        axes += [dataclasses.replace(axis, stage=number) for axis in found]
        depths.append(Depth(f"{container}.depth", tuple(paths), tuple(_evenly_spaced(len(paths))), stage=number))
    return Anatomy(kind, tuple(axes), tuple(depths), tuple(whole), finish)


def _heads(path: str, layer: nn.Module, roles: LayerRoles) -> Axis:
    """Return the axis of a layer's heads, a unit being the queries that share one head of keys and values."""
    size = roles.size_of_heads(layer)
    out = _linear(layer, roles.out)
    queries = _in_size(out) // size
    ties: list[Tie] = []
    if len(roles.qkv) == 1:
        packed = _linear(layer, roles.qkv[0])
        units = (_out_size(packed) // size - queries) // 2  # heads of keys, and of values
        ties += _out_ties(f"{path}.{roles.qkv[0]}", packed, _packed(queries, units, size, roles))
    else:
        keys = _linear(layer, roles.qkv[1])
        units = _out_size(keys) // size
        for name in roles.qkv:
            part = _linear(layer, name)
            ties += _out_ties(f"{path}.{name}", part, _runs(units, _out_size(part) // units))
    ties.append(_in_tie(f"{path}.{roles.out}", out, _runs(units, _in_size(out) // units)))
    per_unit = {"heads": queries // units, "groups": 1, "width": queries // units * size}
    counts = tuple(Count(f"{path}.{name}", per_unit[what]) for name, what in roles.counts if _has(layer, name))
    norms = [tie for name in roles.head_norms for tie in _norm_over_heads(f"{path}.{name}", layer, name, units, size)]
    tables = [Tie(f"{path}.{name}", 1, _runs(units, queries // units)) for name in roles.head_tables]
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
        return _runs(groups, (queries // groups + 2) * size)
    keys = _runs(groups, size) + queries * size
    return torch.cat([_runs(groups, queries // groups * size), keys, keys + groups * size], dim=1)


def _norm_over_heads(path: str, layer: nn.Module, name: str, units: int, size: int) -> list[Tie]:
    """Return the ties of a norm, none where it is over one head alone."""
    weight = getattr(_find(layer, name), "weight", None)
    if not isinstance(weight, Tensor) or weight.numel() == size or weight.ndim != 1:
        return []
    return _norm_ties(path, _find(layer, name), _runs(units, len(weight) // units))


def _neurons(path: str, layer: nn.Module, roles: LayerRoles) -> Axis:
    down = _linear(layer, roles.down)
    size = _in_size(down)
    places = _runs(size, 1)
    ups = [(f"{path}.{name}", _linear(layer, name)) for name in roles.up]
    ties = [tie for name, up in ups for tie in _out_ties(name, up, _copies(size, _out_size(up)))]
    ties.append(_in_tie(f"{path}.{roles.down}", down, places))
    norms = _norms(path, layer, roles.neuron_norms, places)
    return Axis(
        f"{path}.inner", "inner", size, (*ties, *norms), inexact=NORM_OVER_CHANNELS if norms else "", block=path
    )


def _width(name: str, network: nn.Module, paths: Sequence[str], roles: LayerRoles, stream: StreamRoles) -> Axis:
    """Return the axis of the residual stream that the layers at `paths` share, called `name`."""
    first = network.get_submodule(paths[0])
    size = _out_size(_linear(first, roles.out))
    places = _runs(size, 1)
    ties: list[Tie] = []
    counts: list[Count] = []
    for path in paths:
        layer = network.get_submodule(path)
        for part in (*roles.qkv, *roles.up):
            ties.append(_in_tie(f"{path}.{part}", _linear(layer, part), places))
        for part in (roles.out, roles.down):
            ties += _out_ties(f"{path}.{part}", _linear(layer, part), places)
        for part in roles.norms:
            ties += _norm_ties(f"{path}.{part}", _find(layer, part), places)
            counts += _bare_norm(f"{path}.{part}", _find(layer, part))
        ties += [Tie(f"{path}.{part}", 0, places) for part in roles.scales if _has(layer, part)]
    for part in stream.writes:
        module = _find(network, part)
        if isinstance(module, nn.Embedding):
            ties.append(Tie(f"{part}.weight", 1, places))
        elif isinstance(module, nn.Module):
            ties += _out_ties(part, module, places)
    for part in stream.reads:
        module = _find(network, part)
        if isinstance(module, nn.Module) and isinstance(getattr(module, "weight", None), Tensor):
            ties.append(_in_tie(part, module, _copies(size, _in_size(module))))
    for part in stream.norms:
        norm = _find(network, part)
        weight = getattr(norm, "weight", None)
        ties += _norm_ties(part, norm, _copies(size, len(weight)) if isinstance(weight, Tensor) else places)
        counts += _bare_norm(part, norm)
    for part in stream.tensors:
        tensor = _find(network, part)
        if isinstance(tensor, Tensor):
            ties.append(Tie(part, tensor.ndim - 1, places))
    return Axis(name, "width", size, tuple(ties), tuple(counts), inexact=NORM_OVER_CHANNELS)


def _norms(path: str, layer: nn.Module, names: Sequence[str], places: Tensor) -> list[Tie]:
    return [tie for name in names for tie in _norm_ties(f"{path}.{name}", _find(layer, name), places)]


def _norm_ties(name: str, norm: object, places: Tensor) -> list[Tie]:
    if not isinstance(norm, nn.Module):
        return []
    return [Tie(f"{name}.{leaf}", 0, places) for leaf in ("weight", "bias") if _has(norm, leaf)]


def _bare_norm(name: str, norm: object) -> list[Count]:
    """Return the size that a norm without parameters says of itself."""
    bare = _find(norm, "normalized_shape") and not isinstance(getattr(norm, "weight", None), Tensor)
    return [Count(f"{name}.normalized_shape", 1)] if bare and isinstance(norm, nn.Module) else []


def _out_ties(name: str, layer: nn.Module, places: Tensor) -> list[Tie]:
    """Return the ties of a layer's outputs: of its weight and its bias."""
    weight = Tie(f"{name}.weight", 1 if _transposed(layer) else 0, places)
    return [weight, Tie(f"{name}.bias", 0, places)] if _has(layer, "bias") else [weight]


def _in_tie(name: str, layer: nn.Module, places: Tensor) -> Tie:
    return Tie(f"{name}.weight", 0 if _transposed(layer) else 1, places, reads=True)


def _transposed(layer: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as [in, out], as GPT-2's does."""
    return hasattr(layer, "nf") and not isinstance(layer, nn.Linear)


def _linear(layer: nn.Module, name: str) -> nn.Module:
    found = _find(layer, name)
    assert isinstance(found, nn.Module), name
    return found


def _out_size(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1 if _transposed(layer) else 0]


def _in_size(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0 if _transposed(layer) else 1]


def _runs(units: int, length: int) -> Tensor:
    """Return places [units, length]: unit after unit, each a run of its own."""
    return torch.arange(units * length).reshape(units, length)


def _copies(units: int, length: int) -> Tensor:
    """Return places [units, length / units] where the whole stream stands several times, one after the other."""
    return torch.arange(length).reshape(-1, units).T


def _find(root: object, name: str) -> object:
    """Return what `name` points to below `root`; None where there is nothing."""
    found: object = root
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


def _has(root: nn.Module, name: str) -> bool:
    return _find(root, name) is not None


def _evenly_spaced(layers: int) -> Iterator[int]:
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
