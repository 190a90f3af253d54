"""Convolutional networks of any make: tied channels by tracing, residual blocks by trying them out.

Which channels belong together is read off torch-pruning's dependency graph (Fang et al., "DepGraph", CVPR 2023). What
that does not tell is followed through a run of the network.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdnas.nn.anatomy import ANATOMIES
from kdnas.nn.anatomy._following import followed
from kdnas.nn.anatomy._stream import last_layer
from kdnas.nn.anatomy._ties import out_size
from kdnas.nn.cutting import NORM_OVER_CHANNELS, Anatomy, Axis, Count, Depth, Role, Tie, Uncut, named_tensors, outputs
from kdnas.nn.scaling_norms import norms_by_itself

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
_CHANNELS = ".channels"
_ALL = "all channels"
_MOST_WORK = 1 << 18
"""Places that torch-pruning may go through: some seconds' work, of which networks without attention take a tenth."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@ANATOMIES.register
def convnet(network: nn.Module, example: Tensor) -> Anatomy | None:
    """Read a network of convolutions or linear layers: its groups of tied channels, and its residual blocks."""
    if not isinstance(example, Tensor) or not example.is_floating_point():  # what no network of images takes
        return None
    axes, uncut = _channels(network, example)
    if uncut:
        axes, uncut = _with_followed(network, example, axes, uncut)
    axes = [_with_counts(axis, network) for axis in axes]
    depths = _depths(network, example)
    return Anatomy("convnet", tuple(_placed(axes, depths, network)), tuple(depths), tuple(uncut))


def _channels(network: nn.Module, example: Tensor) -> tuple[list[Axis], list[Uncut]]:
    from torch_pruning import DependencyGraph

    traced = copy.deepcopy(network).requires_grad_(True).eval()  # the graph is that of the gradients
    names = {module: name for name, module in traced.named_modules()}
    roots = [nn.Linear, *_CONVOLUTIONS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of which dimension of bare parameters it takes for the channels
            graph = DependencyGraph().build_dependency(traced, example_inputs=example)
        _bound_work(graph)
        last, answers = last_layer(traced, example), outputs(traced, example)
        ignored = [last] if out_size(last) == answers.shape[1] else []  # else something without a layer answers
        groups = list(graph.get_all_groups(ignored_layers=ignored, root_module_types=roots))
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        return [], [Uncut(_ALL, f"the network cannot be traced: {str(error).partition(chr(10))[0]}")]
    axes, uncut = [], []
    for group in groups:
        name = _writer(group, graph, names)
        try:
            axes.append(_axis(name, group, graph, names))
        except ValueError as error:
            uncut.append(Uncut(f"the channels of {name}", str(error)))
    return _in_order(axes, network), uncut


def _bound_work(graph: Any) -> None:
    """Make `graph` raise an error where its lists of channels grow without end, as those of attention's layers do."""
    done = 0

    class Counted(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            return (one and partial(mapped, one) for one in super().__iter__())

    def mapped(mapping: Any, places: Any) -> Any:
        nonlocal done
        done += len(places)
        if done > _MOST_WORK:
            raise ValueError("its channels go too many ways")
        return mapping(places)

    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = Counted(dependency.index_mapping)


def _in_order(axes: Iterable[Axis], network: nn.Module) -> list[Axis]:
    place = {name: index for index, (name, _) in enumerate(network.named_modules())}
    return sorted(axes, key=lambda axis: place[axis.name.removesuffix(_CHANNELS)])


def _with_followed(
    network: nn.Module, example: Tensor, axes: Sequence[Axis], uncut: Sequence[Uncut]
) -> tuple[list[Axis], list[Uncut]]:
    """Return the axes with those that are followed through the network where they tell more, and what is left."""
    try:
        more, without = followed(network, example)
    except Exception:  # the network's own code runs, which may raise anything
        return list(axes), list(uncut)
    places = [_where(axis) for axis in axes]
    more = [axis for axis in more if _where(axis) not in places]
    followed_at = {place for axis in more for place in _where(axis)}
    axes = [axis for axis in axes if followed_at.isdisjoint(_where(axis))]
    written = {tensor.removesuffix(".weight") for axis in (*axes, *more) for tensor, dim in _where(axis) if dim == 0}
    found = {f"the channels of {name}" for name in written}
    why = {part.what: part for part in without if part.what not in found}
    left = [why.get(part.what, part) for part in uncut if part.what not in found]
    if any(part.what == _ALL for part in uncut):  # each by itself, now that they are known
        left = [*why.values()] if more else left
    return _in_order([*axes, *more], network), left


def _where(axis: Axis) -> set[tuple[str, int]]:
    return {(tie.tensor, tie.dim) for tie in axis.ties if tie.places.numel()}


def _with_counts(axis: Axis, network: nn.Module) -> Axis:
    """Return the axis with the shapes that modules state of parameters of their own, as timm's scales do."""
    counts = []
    for tie in axis.ties:
        path = tie.tensor.rpartition(".")[0]
        shape = getattr(network.get_submodule(path), "shape", None)
        if isinstance(shape, tuple) and shape.count(tie.places.numel()) == 1:
            counts.append(Count(f"{path}.shape", tie.places.numel() // axis.size))
    return dataclasses.replace(axis, counts=(*axis.counts, *counts))


def _writer(group: Any, graph: Any, names: dict[nn.Module, str]) -> str:
    """Return the first layer, in the network's order, that makes a group's channels anew: what the axis is called."""
    writers = [member.dep.target.module for member in group if graph.is_out_channel_pruning_fn(member.dep.handler)]
    makers = [
        names[module]
        for module in writers
        if isinstance(module, nn.Linear) or (isinstance(module, _CONVOLUTIONS) and module.groups == 1)
    ]
    order = list(names.values())
    return min(makers or [names[group[0].dep.target.module]], key=order.index)


def _axis(name: str, group: Any, graph: Any, names: dict[nn.Module, str]) -> Axis:
    """Return the axis of a group of the graph. Raises ValueError where it cannot be cut channel by channel."""
    members = list(group)
    channels = len(members[0].idxs)
    grouped = {
        module.groups
        for module in (member.dep.target.module for member in members)
        if isinstance(module, _CONVOLUTIONS) and module.groups > 1 and module.groups != module.in_channels
    }
    if len(grouped) > 1:
        raise ValueError(f"they meet convolutions of {' and '.join(map(str, sorted(grouped)))} groups")
    parts = grouped.pop() if grouped else 1
    units = channels // parts
    ties: dict[tuple[str, int, bool], Tie] = {}
    for member in members:
        module = member.dep.target.module
        rows = _rows(member.root_idxs, member.idxs, channels)
        outward = graph.is_out_channel_pruning_fn(member.dep.handler)
        for tie in _ties(module, names, graph, rows, parts, outward=outward):
            ties.setdefault((tie.tensor, tie.dim, tie.reads), tie)
    tensors = dict(named_tensors(graph.model))
    if made := next((tie.tensor for tie in ties.values() if tie.tensor not in tensors), ""):
        raise ValueError(f"{made} is computed anew from others whenever it is used")
    if any(int(tie.places.max()) >= tensors[tie.tensor].shape[tie.dim] for tie in ties.values()):
        raise ValueError("the trace does not tell where in a layer they are")
    if not any(tie.reads for tie in ties.values()):
        raise ValueError("no layer of the network reads them")
    holders = [graph.model.get_submodule(tie.tensor.rpartition(".")[0]) for tie in ties.values()]
    normed = any(isinstance(part, nn.LayerNorm | nn.GroupNorm) or norms_by_itself(part) for part in holders)
    return Axis(
        f"{name}{_CHANNELS}", "width", units, tuple(ties.values()), inexact=NORM_OVER_CHANNELS if normed else ""
    )


def _rows(roots: Sequence[int], places: Sequence[int], channels: int) -> list[list[int]]:
    """Return by channel of the group its places in one layer."""
    rows: list[list[int]] = [[] for _ in range(channels)]
    for root, place in zip(roots, places, strict=True):
        rows[root].append(place)
    if len({len(row) for row in rows}) != 1:
        raise ValueError("they are split into unlike parts, or joined with some of themselves alone")
    return rows


def _ties(
    module: nn.Module, names: dict[nn.Module, str], graph: Any, rows: list[list[int]], parts: int, *, outward: bool
) -> Iterable[Tie]:
    """Yield the ties of one layer; with `parts`, unit u holds channel u of every part of a grouped convolution."""
    units = len(rows) // parts
    places = torch.tensor([[p for part in range(parts) for p in rows[part * units + unit]] for unit in range(units)])
    if isinstance(module, nn.Parameter):
        name, dim = _bare_parameter(module, graph)
        yield Tie(name, dim, places)
        return
    name = names.get(module)
    if name is None:
        return  # an operation without weights
    turned = isinstance(module, _TRANSPOSED) and module.groups == 1
    if not outward and isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)):
        whole = isinstance(module, nn.Linear) or module.groups == 1
        places = places if whole else torch.arange(units)[:, None]
        yield Tie(f"{name}.weight", 0 if turned else 1, places, reads=True)
        return
    for leaf in _PER_CHANNEL:
        tensor = getattr(module, leaf, None)
        if isinstance(tensor, Tensor) and tensor.ndim:
            yield Tie(f"{name}.{leaf}", 1 if turned and leaf == "weight" else 0, places)


def _bare_parameter(parameter: nn.Parameter, graph: Any) -> tuple[str, int]:
    """Return the name and the channel dimension of a parameter that stands in a network by itself."""
    name = next(name for name, value in graph.model.named_parameters() if value is parameter)
    dims = {id(entry.parameters): entry.pruning_dim for entry in graph.unwrapped_parameters}
    return name, dims[id(parameter)]


def _placed(axes: Sequence[Axis], depths: Sequence[Depth], network: nn.Module) -> list[Axis]:
    """Return the axes with their stages, those that lie in one block as its inner ones.

    A stage ends with its last removable block. A width belongs to the first stage whose blocks write it.
    """
    place = {name: index for index, (name, _) in enumerate(network.named_modules())}
    firsts = [place[depth.blocks[0]] for depth in depths]
    lasts = [max(index for name, index in place.items() if _within(name, depth.blocks[-1])) for depth in depths]
    removable = [block for depth in depths for block in depth.blocks]
    placed = []
    for axis in axes:
        writer = place[axis.name.removesuffix(_CHANNELS)]
        stage = next(
            (depth.stage for depth, last in zip(depths, lasts, strict=True) if writer <= last), len(depths) + 1
        )
        block = _block_around(axis, network, removable)
        if not block:
            written = [tie.tensor for tie in axis.ties if not tie.reads]
            writing = [d.stage for d in depths if any(_within(name, block) for block in d.blocks for name in written)]
            stage = min(writing) if writing else 0 if firsts and writer < firsts[0] else stage
        role: Role = "inner" if block else "width"
        placed.append(dataclasses.replace(axis, role=role, stage=stage, block=block))
    return placed


def _block_around(axis: Axis, network: nn.Module, removable: Sequence[str]) -> str:
    """Return the block that holds all the layers of `axis`, empty where there is none: a removable one, or like one."""
    paths = [tie.tensor.split(".")[:-1] for tie in axis.ties]
    common = [parts[0] for parts in itertools.takewhile(lambda p: len(set(p)) == 1, zip(*paths, strict=False))]
    around = [".".join(common[: length + 1]) for length in range(len(common))]  # from the outside
    if found := next((name for name in around if name in removable), ""):
        return found
    like_one = [
        name
        for name in around
        if not isinstance(network.get_submodule(name), nn.Sequential | nn.ModuleList | nn.ModuleDict)
        and not any(_within(block, name) for block in removable)
    ]
    # Without removable blocks nothing distinguishes a block from a wrapper around the whole network: the innermost is
    # one.
    return (like_one[0] if removable else like_one[-1]) if like_one else ""


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _depths(network: nn.Module, example: Tensor) -> list[Depth]:
    """Return the stages of residual blocks, in the network's order: runs of siblings that work at one shape."""
    runs: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in _residual_blocks(network, example).items():
        runs.setdefault((name.rpartition(".")[0], shape), []).append(name)
    parents = [parent for parent, _ in runs]
    depths: list[Depth] = []
    for stage, ((parent, _), blocks) in enumerate(runs.items(), 1):
        number = f"{len([d for d in depths if d.name.startswith(f'{parent}.depth')]) + 1}"
        several = parents.count(parent) > 1
        siblings = [child for child, _ in network.get_submodule(parent).named_children()]
        least = 0 if len(blocks) < len(siblings) else 1
        name = f"{parent}.depth{number if several else ''}"
        depths.append(Depth(name, tuple(blocks), tuple(range(len(blocks))), least, stage, fixed=1 - least))
    return depths


def _residual_blocks(network: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the innermost modules that are the identity once their parameters are zero, with their shape."""
    seen: dict[str, tuple[Any, ...]] = {}
    lists = [name for name, part in network.named_modules() if isinstance(part, nn.ModuleList)]

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not inputs or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
                return
            if len(inputs) > 1 and name.rpartition(".")[0] not in lists:  # the identity takes one
                return
            if inputs[0].shape == output.shape and output.ndim > 1:
                seen[name] = (inputs[0].clone(), *inputs[1:])

        return hook

    probe = copy.deepcopy(network).eval()
    handles = [module.register_forward_hook(watch(name)) for name, module in probe.named_modules() if name]
    with torch.no_grad():
        probe(example)
        for handle in handles:
            handle.remove()
        found = {
            name: tuple(fed.shape[1:])
            for name, (fed, *more) in seen.items()
            if _is_residual(probe.get_submodule(name), fed, more)
        }
    return {name: shape for name, shape in found.items() if not any(other.startswith(f"{name}.") for other in found)}


def _is_residual(block: nn.Module, fed: Tensor, more: Sequence[Any]) -> bool:
    """Whether `block` with zero parameters gives back what it is `fed`, made as large as rounding leaves alone.

    It is given `more` besides, such as the size of the map.

    A norm that adds what it is fed, as ConvNeXt V2's does, is no block: a layer must be in it.
    """
    if not any(isinstance(module, (nn.Linear, *_CONVOLUTIONS)) for module in block.modules()):
        return False
    largest = fed.abs().max()
    fed = fed / largest if largest > 0 else torch.rand_like(fed)
    empty = copy.deepcopy(block)
    for parameter in empty.parameters():
        parameter.zero_()
    result = empty(fed.clone(), *more)
    return math.isfinite(float(result.abs().max())) and torch.allclose(result, fed, atol=1e-6)
