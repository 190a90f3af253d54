"""Roles of the parts in a layer of an unlisted make, inferred by widths, and by names where widths do not decide.

A layer of a transformer is a few linear layers. The residual stream's width shows which of them read it and which write
it; which of four square ones are queries, keys, values and the way out is decided by libraries' names for them. What is
inferred wrongly is found out when it is tried (`kdnas.nn.cutting.sound_part`), and left whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from kdnas.nn.anatomy._roles import LayerRoles
from kdnas.nn.anatomy._stream import StreamRoles
from kdnas.nn.anatomy._ties import find, in_size, is_linear, norms_in, out_size

_KINDS = tuple(
    re.compile(rf"(to_?|lin_?|w_?|attn_)?({kind})(_?(proj|lin|linear|layer))?", re.IGNORECASE)
    for kind in ("q|query", "k|key", "v|value")
)
_PACKED = re.compile(r"(to_?|w)?qkv(_?(proj|lin))?|query_key_value|c_attn|in_proj|att_proj", re.IGNORECASE)
_BY_HEAD = ("query_key_value",)
"""Packed layers of these names hold the queries, keys and values of one head after those of another."""
_OUT = re.compile(r"(to_?|w)?(o|out)(_?(proj|lin))?|c_proj|dense|proj|linear_out|fc_out", re.IGNORECASE)
_HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "d_head", "dim_head", "depth")
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads", "config.num_attention_heads")
_GROUPS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_WIDTHS = ("all_head_size", "inner_dim", "attn_dim", "split_size", "embed_dim")
_OWN_NORMS = re.compile(r"(.*[._])?(q|k|query|key)_?(layer)?_?norm", re.IGNORECASE)
_ATTENTION = re.compile(r"\w*(attn|attention)\w*", re.IGNORECASE)
_SCALES = re.compile(r"(.*[._])?(gamma|lambda|scale|layer_?scale)(_?\d)?", re.IGNORECASE)
UNKNOWN_ATTENTION = "its attention is of no make that kdnas knows"


@dataclass(frozen=True)
class Inferred:
    """A layer's roles: those of its first attention and MLP, and of the others that it may have; who else is there.

    `down` is empty where there is no MLP of linear layers, such as where experts share a tensor.
    """

    roles: LayerRoles
    mlps: tuple[LayerRoles, ...]
    """The others': `up` and `down`."""
    attentions: tuple[LayerRoles, ...]
    """The others': such as a decoder's to the encoder. Without an MLP."""
    stream: StreamRoles
    """Who else touches the stream, by dotted names inside the layer."""
    width: int
    """Of the residual stream."""


def inferred(layer: nn.Module) -> Inferred | None:
    """Return who plays which role in `layer`; None where it has neither attention nor an MLP that is known."""
    linears = {name: part for name, part in layer.named_modules() if name and is_linear(part)}
    attentions = [found for parent in _parents(linears) if (found := _attention(layer, parent, linears))]
    width = _width(layer, attentions, linears)
    taken = {name for found in attentions for name in (*found.qkv, found.out)}
    known = {f"{_parent(name)}." for found in attentions for name in found.qkv if _parent(name)}
    within = (*known, *(f"{name}." for name in attentions_in(layer)))  # no neurons, if of an unknown make
    rest = {name: part for name, part in linears.items() if name not in taken}
    mlps, loose = _mlps({name: part for name, part in rest.items() if not name.startswith(within)}, width)
    if not mlps and not attentions:
        return None
    loose += [name for name in rest if name.startswith(within)]
    first = attentions[0] if attentions else LayerRoles((), mlps[0][1], (), "", heads_stay=UNKNOWN_ATTENTION)
    roles = replace(first, scales=tuple(_scales(layer, width)))
    if mlps:
        up, down = mlps[0]
        inner = in_size(linears[down])
        normed = tuple(name for name, size in norms_in(layer).items() if size == inner != width)
        roles = replace(roles, up=up, down=down, neuron_norms=normed)
    more = [name for found in attentions[1:] for name in found.qkv]
    stream = StreamRoles(
        writes=(
            *(found.out for found in attentions[1:]),
            *(down for _, down in mlps[1:]),
            *(name for name in loose if out_size(linears[name]) == width != in_size(linears[name])),
        ),
        reads=(
            *more,
            *(name for up, _ in mlps[1:] for name in up),
            *(name for name in loose if in_size(linears[name]) == width),
        ),
    )
    others = tuple(replace(roles, up=up, down=down, neuron_norms=()) for up, down in mlps[1:])
    return Inferred(roles, others, tuple(attentions[1:]), stream, width)


def attentions_in(layer: nn.Module) -> list[str]:
    """Return the parts of `layer` that are attention by their names, of whatever make."""
    return [name for name, _ in layer.named_modules() if _ATTENTION.fullmatch(_leaf(name))]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _parents(linears: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(_parent, linears)))


def _attention(layer: nn.Module, parent: str, linears: Mapping[str, nn.Module]) -> LayerRoles | None:
    """Return the roles of the attention whose projections are children of `parent`; None where it has none."""
    children = [name for name in linears if _parent(name) == parent]
    packed = [name for name in children if _PACKED.fullmatch(_leaf(name))]
    three = [next((name for name in children if kind.fullmatch(_leaf(name))), "") for kind in _KINDS]
    if not packed and not all(three):
        return None
    qkv = (packed[0],) if packed else tuple(three)
    near = [*children, *(name for name in linears if name.startswith(f"{_parent(parent)}.") and name not in children)]
    out = next((name for name in near if name not in qkv and _OUT.fullmatch(_leaf(name))), "")
    dot = f"{parent}." if parent else ""
    size = next((dot + name for name in _HEAD_SIZES if isinstance(find(layer, dot + name), int)), "")
    totals = [dot + name for name in _HEADS if isinstance(find(layer, dot + name), int)]
    if not out or not (size or totals):
        return None
    roles = LayerRoles(
        qkv,
        out,
        (),
        "",
        head_size=size,
        heads="" if size else totals[0],
        packed="heads" if _leaf(qkv[0]) in _BY_HEAD else "kinds",
        head_norms=tuple(name for name in norms_in(layer) if name.startswith(dot) and _OWN_NORMS.fullmatch(name)),
    )
    queries = in_size(linears[out])
    if not packed:  # such as projections of positions, which have the same heads
        sizes = {in_size(linears[name]) for name in qkv}
        further = [n for n in children if n not in (*qkv, out) and out_size(linears[n]) == queries]
        roles = replace(roles, qkv=(*qkv, *(n for n in further if in_size(linears[n]) in sizes)))
    counts = [
        *((name, "heads") for name in totals[:1]),
        *((dot + name, "groups") for name in _GROUPS if isinstance(find(layer, dot + name), int)),
        *((dot + name, "width") for name in _WIDTHS if find(layer, dot + name) == queries),
    ]
    return replace(roles, counts=tuple(counts))


def _width(layer: nn.Module, attentions: Iterable[LayerRoles], linears: Mapping[str, nn.Module]) -> int:
    """Return how wide the residual stream of `layer` is: what its attention gives, else what most of its norms see.

    Of sizes that are seen as often it is what the last linear layer gives.
    """
    for found in attentions:
        return out_size(linears[found.out])
    given = [out_size(part) for part in linears.values()]
    seen = Counter(norms_in(layer).values()) or Counter(given)
    return max(seen, key=lambda size: (seen[size], size == given[-1])) if given else 0


def _mlps(linears: Mapping[str, nn.Module], width: int) -> tuple[list[tuple[tuple[str, ...], str]], list[str]]:
    """Return the layers into and out of each MLP's neurons, and what is part of none."""
    mlps: list[tuple[tuple[str, ...], str]] = []
    waiting: list[str] = []
    for name, part in linears.items():
        inner = in_size(part)
        ups = [up for up in waiting if in_size(linears[up]) == width and out_size(linears[up]) in (inner, 2 * inner)]
        near = [up for up in ups if _parent(up) == _parent(name)] or ups
        if out_size(part) == width and near:
            mlps.append((tuple(near), name))
            waiting = [up for up in waiting if up not in near]
        else:
            waiting.append(name)
    # A gate may stand after the way out, as Llama's first versions had it.
    for place, (known, down) in enumerate(mlps):
        gates = [
            name
            for name in waiting
            if _parent(name) == _parent(down)
            and in_size(linears[name]) == width
            and out_size(linears[name]) == in_size(linears[down])
        ]
        mlps[place] = ((*known, *gates), down)
        waiting = [name for name in waiting if name not in gates]
    return mlps, waiting


def _scales(layer: nn.Module, width: int) -> Iterable[str]:
    """Yield the parameters of `layer`, no layer's or norm's, that scale the stream."""
    for name, tensor in layer.named_parameters():
        if tensor.shape == (width,) and _SCALES.fullmatch(name):
            yield name
