"""Transformers of a make that nobody listed: runs of like layers, each of an MLP and, mostly, attention.

Who does what in a layer is inferred (`_inferred`). An encoder and a decoder share one residual stream.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from torch import nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._inferred import UNKNOWN_ATTENTION, Inferred, attentions_in, inferred
from kdnas.nn.anatomy._roles import evenly_spaced, heads_axis, neurons_axis, width_axis
from kdnas.nn.anatomy._settings import set_hugging_face_sizes
from kdnas.nn.anatomy._stream import around
from kdnas.nn.anatomy._ties import runs
from kdnas.nn.cutting import Anatomy, Axis, Depth, Example, Tie, Uncut

_SHARED = "one layer serves again and again; how often is a number of its configuration"
_ODD = "it is made otherwise than the other layers"


@ANATOMIES.register
def layers(network: nn.Module, example: Example) -> Anatomy | None:
    """Read a transformer of any make: heads and MLP neurons of every layer, its layers, and the width they share."""
    found_in = _runs(network)
    if not found_in:
        return None
    axes, depths, whole = list[Axis](), list[Depth](), list[Uncut]()
    for stage, (container, found) in enumerate(found_in.items(), 1):
        for path, parts in found.items():
            layer = network.get_submodule(path)
            own = [neurons_axis(path, layer, parts.roles)] if parts.roles.down else []
            for number, other in enumerate(parts.mlps, 2):
                own.append(dataclasses.replace(neurons_axis(path, layer, other), name=f"{path}.inner{number}"))
            for number, other in enumerate(parts.attentions, 2):
                own.append(dataclasses.replace(heads_axis(path, layer, other), name=f"{path}.heads{number}"))
            if not parts.roles.heads_stay:
                own.insert(0, heads_axis(path, layer, parts.roles))
            elif attentions_in(layer) or any("attention" in type(part).__name__.lower() for part in layer.modules()):
                whole.append(Uncut(f"{path}.heads", UNKNOWN_ATTENTION))
            axes += [dataclasses.replace(axis, stage=stage) for axis in own]
        alike, others = _alike(network, list(found))
        whole += [Uncut(path, _ODD) for path in others]
        if len(alike) > 1 or others:
            order = tuple(evenly_spaced(len(alike)))
            least = 0 if others else 1
            depths.append(Depth(f"{container}.depth", tuple(alike), order, least, stage, fixed=len(others)))
        else:
            whole.append(Uncut(f"{container}.depth", _SHARED))
    axes = _with_shared_tables(network, axes)
    every = {path: parts for found in found_in.values() for path, parts in found.items()}
    if len({parts.width for parts in every.values()}) == 1:
        axes.append(_width(network, every, example))
    else:
        whole.append(Uncut("width", "its layers are of several widths"))
    return Anatomy("layers", tuple(axes), tuple(depths), tuple(whole), set_hugging_face_sizes)


def _runs(network: nn.Module) -> dict[str, dict[str, Inferred]]:
    """Return by their container the layers that have an MLP, the outermost ones but for stages of layers."""
    runs: dict[str, dict[str, Inferred]] = {}
    for name, module in network.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(f"{run}.") for run in runs):
            continue
        kinds = Counter(map(type, module.children()))
        kind = kinds.most_common(1)[0][0] if kinds else None
        if kind is None or issubclass(kind, nn.ModuleList | nn.Sequential):
            continue
        found = {
            f"{name}.{child}".removeprefix("."): parts
            for child, layer in module.named_children()
            if type(layer) is kind and (parts := inferred(layer)) is not None
        }
        if found and len(found) == len(module) and not (_alike(network, list(found))[1] and _hold_layers(module)):
            runs[name] = found
    return runs


def _hold_layers(stages: nn.Module) -> bool:
    """Whether there is a list of layers of one kind inside each of `stages`."""

    def is_list_of_layers(part: nn.Module) -> bool:
        kinds = set(map(type, part.children()))
        return isinstance(part, nn.ModuleList | nn.Sequential) and len(part) > len(kinds) == 1

    return all(
        any(all(map(inferred, part.children())) for part in stage.modules() if is_list_of_layers(part))
        for stage in stages.children()
    )


def _alike(network: nn.Module, paths: list[str]) -> tuple[list[str], list[str]]:
    """Return the layers that have the same parameters, which are most of them, and the others."""
    made = {
        path: tuple((name, tuple(tensor.shape)) for name, tensor in network.get_submodule(path).named_parameters())
        for path in paths
    }
    most = Counter(made.values()).most_common(1)[0][0]
    return [path for path in paths if made[path] == most], [path for path in paths if made[path] != most]


def _with_shared_tables(network: nn.Module, axes: list[Axis]) -> list[Axis]:
    """Return the axes, all heads as one where a table of positions has a column for every head of all layers.

    T5 and MPNet have such a table.
    """
    heads = [axis for axis in axes if axis.role == "heads"]
    sizes = {axis.size for axis in heads}
    tables = [
        f"{name}.weight"
        for name, part in network.named_modules()
        if isinstance(part, nn.Embedding) and {part.embedding_dim} == sizes and "relative" in name.lower()
    ]
    if not tables:
        return axes
    ties = [tie for axis in heads for tie in axis.ties]
    columns = [Tie(name, 1, runs(heads[0].size, 1)) for name in tables]
    counts = tuple(count for axis in heads for count in axis.counts)
    whole = dataclasses.replace(heads[0], name="heads", ties=(*ties, *columns), counts=counts, block="")
    return [whole, *(axis for axis in axes if axis.role != "heads")]


def _width(network: nn.Module, every: dict[str, Inferred], example: Example) -> Axis:
    size = next(iter(every.values())).width
    stream = around(network, list(every), size, example)
    for path, parts in every.items():
        stream = stream.merged(parts.stream.below(f"{path}."))
    return width_axis("width", network, [(path, parts.roles) for path, parts in every.items()], stream)
