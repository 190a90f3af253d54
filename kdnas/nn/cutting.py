"""What can be cut out of a loaded network: its axes (groups of coupled channels, heads, neurons) and its blocks.

An anatomy (`kdnas.nn.anatomy` reads it) lists as plain records which places of which tensors belong together. What is
here works on the lists alone: cutting, masking, and checking that a cut network computes what the masked one does. An
anatomy that is ranked by importance gives every student as a prefix of its order.

Cutting slices the network's own tensors and sets its own counts, so a student is a module of the teacher's class.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdnas.nn.layer_lists import leave_out_of_lists
from kdnas.nn.normalise import Normalised
from kdnas.nn.pieces import ClassLogitsOf, LogitsOf
from kdnas.nn.scaling_norms import norms_as_scales

Example = Tensor | tuple[Tensor, ...]
"""What a network is run on: its one input [B, ...], or all of them in their order."""
NORM_OVER_CHANNELS = "a norm over the channels averages over fewer of them"
"""Why cutting the channels under a LayerNorm is inexact by nature."""

Role = Literal["width", "inner", "heads"]
"""What flows from block to block; what a block works with inside; whole heads of attention."""


@dataclass(frozen=True)
class Tie:
    """Where an axis lies in one dimension of one tensor: unit u owns the places `places[u]`."""

    tensor: str
    """Dotted name of a parameter or buffer."""
    dim: int
    places: Tensor
    """[U units, k places a unit], int64."""
    reads: bool = False
    """Whether this is the input of a layer: what the axis carries is read here."""


@dataclass(frozen=True)
class Count:
    """A number inside a module that follows the size of an axis: `attribute` = `per_unit` x size."""

    attribute: str
    """Dotted name."""
    per_unit: int


@dataclass(frozen=True)
class Axis:
    """Coupled places that are cut together, unit by unit: a head, a neuron, a channel."""

    name: str
    role: Role
    size: int
    """Units."""
    ties: tuple[Tie, ...]
    counts: tuple[Count, ...] = ()
    least: int = 1
    """Fewest units that work."""
    inexact: str = ""
    """Why a cut network differs from the masked one by nature, such as a LayerNorm over fewer channels; else empty."""
    stage: int = 1
    """The stage that it belongs to, counted from 1; 0 before all of them, one more than their number after."""
    block: str = ""
    """The block that it lies in, empty where several share it."""
    order: tuple[int, ...] = ()
    """Ranks the units, the one to keep longest first; empty: the first ones stay."""


@dataclass(frozen=True)
class Depth:
    """Blocks of one stage that may be left out, each the identity but for what it adds.

    `blocks` are dotted names inside one container, in the network's order; `order` ranks them, the one to keep longest
    first.
    """

    name: str
    blocks: tuple[str, ...]
    order: tuple[int, ...]
    least: int = 1
    stage: int = 1
    fixed: int = 0
    """Blocks of the stage that always stay, in addition to these."""


@dataclass(frozen=True)
class Uncut:
    """A part of the network that is left as it is, and why."""

    what: str
    why: str


Kept = Mapping[str, Sequence[int]]
"""By the name of an axis or a depth: the units or blocks that stay; they keep the network's order."""
Places = Mapping[str, Mapping[int, Tensor]]
"""By the name of a tensor, and by dimension: which places stay, int64 in order."""
Finish = Callable[[nn.Module, "Anatomy", Kept], None]
"""Puts right what a cut leaves behind in a module of its kind, such as its configuration."""


def left_alone(module: nn.Module, anatomy: Anatomy, kept: Kept) -> None:
    """Leave the module as it is."""


@dataclass(frozen=True)
class Anatomy:
    """The axes and removable blocks of one network; `kind` is the member of the family that found them."""

    kind: str
    axes: tuple[Axis, ...]
    depths: tuple[Depth, ...]
    uncut: tuple[Uncut, ...] = ()
    finish: Finish = field(default=left_alone, compare=False)

    @property
    def parts(self) -> tuple[Axis | Depth, ...]:
        """All of them."""
        return (*self.axes, *self.depths)

    @cached_property
    def by_name(self) -> dict[str, Axis | Depth]:
        """Every axis and depth by its name."""
        return {part.name: part for part in self.parts}

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the whole network, by name."""
        return {name: len(part.blocks) if isinstance(part, Depth) else part.size for name, part in self.by_name.items()}

    @property
    def left_whole(self) -> dict[str, list[str]]:
        """By the reason, what is left as it is."""
        whole: dict[str, list[str]] = {}
        for part in self.uncut:
            whole.setdefault(part.why, []).append(part.what)
        return whole

    @property
    def outline(self) -> Anatomy:
        """The same parts without the places of their tensors: enough to list what can be cut, not to cut."""
        nowhere = torch.empty(0, dtype=torch.int64)
        axes = tuple(
            dataclasses.replace(axis, ties=tuple(dataclasses.replace(tie, places=nowhere) for tie in axis.ties))
            for axis in self.axes
        )
        return Anatomy(self.kind, axes, self.depths, self.uncut)

    def prefix(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return what stays at `sizes`: the units and blocks that rank first, as the network has them in its order.

        What is not named stays whole. What stays at a size is part of what stays at every larger one. Raises ValueError
        where a size is none of its part's.
        """
        kept: dict[str, tuple[int, ...]] = {}
        for name, size in sizes.items():
            part = self.by_name.get(name)
            if part is None:
                raise ValueError(f"no part is called {name}; there are {', '.join(self.by_name)}")
            most = len(part.blocks) if isinstance(part, Depth) else part.size
            if not part.least <= size <= most:
                raise ValueError(f"{name} is {size}: {part.least} to {most}")
            kept[name] = tuple(sorted(part.order[:size])) if part.order else tuple(range(size))
        return kept

    def gone(self, kept: Kept) -> tuple[str, ...]:
        """Return the dotted names of the blocks that are not kept."""
        return tuple(
            name
            for depth in self.depths
            for index, name in enumerate(depth.blocks)
            if index not in kept.get(depth.name, range(len(depth.blocks)))
        )

    def cut(self, network: nn.Module, kept: Kept) -> nn.Module:
        """Return a copy of `network` that holds what is `kept` alone; other parts stay whole.

        The copy is a module of the same class on the same device, and shares no tensor with `network`; weights that
        were tied stay tied.
        """
        student = copy.deepcopy(network)
        self.cut_down(student, kept, self.places(student, kept))
        return student

    def cut_down(self, network: nn.Module, kept: Kept, places: Places) -> None:
        """Leave of `network` itself what is `kept` alone, whose `places` these are."""
        for axis in self.axes:
            for count in axis.counts if axis.name in kept else ():
                _set(network, count.attribute, count.per_unit * len(kept[axis.name]))
        _write(network, places)
        _leave_out(network, self.gone(kept))
        self.finish(network, self, kept)

    def without(self, network: nn.Module, gone: Collection[int], depth: Depth) -> nn.Module:
        """Return `network` without the blocks `gone` of `depth`, for a look at it: it shares all of its tensors."""
        copied = copy.deepcopy(network, {id(tensor): tensor for _, tensor in named_tensors(network)})
        stay = tuple(block for block in range(len(depth.blocks)) if block not in gone)
        self.cut_down(copied, {depth.name: stay}, {})
        return copied

    def places(self, network: nn.Module, kept: Kept) -> Places:
        """Return which places of the tensors of `network` stay where only `kept` is left; what is whole is left out."""
        named = dict(named_tensors(network))
        stay: dict[str, dict[int, Tensor]] = {}
        for axis in self.axes:
            units = torch.tensor(list(kept.get(axis.name, range(axis.size))), dtype=torch.int64)
            for tie in axis.ties if len(units) < axis.size else ():
                size = named[tie.tensor].shape[tie.dim]
                dims, left = stay.setdefault(tie.tensor, {}), tie.places[units].reshape(-1)
                if tie.dim not in dims and tie.places.numel() == size:  # nothing but the axis lies there
                    dims[tie.dim] = left.sort().values
                    continue
                before = dims.get(tie.dim, torch.arange(size))
                going = torch.zeros(size, dtype=torch.bool)
                going[tie.places.reshape(-1)] = True
                going[left] = False
                dims[tie.dim] = before[~going[before]]
        return stay

    def left(self, network: nn.Module, kept: Kept) -> Anatomy:
        """Return the anatomy of what is left of `network` once only `kept` is: parts keep their names and their order.

        So a student is cut on as the network was: what ranks first in it ranked first there.
        """
        stay, gone = self.places(network, kept), self.gone(kept)
        now = {name: {dim: _inverse(left) for dim, left in dims.items()} for name, dims in stay.items()}
        prefixes = tuple(f"{name}." for name in gone)

        def renamed(name: str) -> str:
            path, _, leaf = name.rpartition(".")
            return f"{self.renamed(network, path, kept)}.{leaf}".removeprefix(".")

        def tie_left(tie: Tie, units: Sequence[int]) -> Tie:
            places = tie.places[list(units)]
            moved = now.get(tie.tensor, {}).get(tie.dim)
            places = places if moved is None else moved[places]
            return dataclasses.replace(tie, tensor=renamed(tie.tensor), places=places)

        axes = []
        for axis in self.axes:
            if axis.block in gone:
                continue
            units = kept.get(axis.name, range(axis.size))
            axes.append(
                dataclasses.replace(
                    axis,
                    size=len(units),
                    ties=tuple(tie_left(tie, units) for tie in axis.ties if not tie.tensor.startswith(prefixes)),
                    counts=tuple(
                        dataclasses.replace(count, attribute=renamed(count.attribute))
                        for count in axis.counts
                        if not count.attribute.startswith(prefixes)
                    ),
                    block=axis.block and self.renamed(network, axis.block, kept),
                    order=_order_left(axis.order, units),
                )
            )
        depths = []
        for depth in self.depths:
            blocks = kept.get(depth.name, range(len(depth.blocks)))
            names = tuple(self.renamed(network, depth.blocks[index], kept) for index in blocks)
            depths.append(dataclasses.replace(depth, blocks=names, order=_order_left(depth.order, blocks)))
        return dataclasses.replace(self, axes=tuple(axes), depths=tuple(depths))

    def mask(self, network: nn.Module, kept: Kept) -> nn.Module:
        """Return a copy of `network` at full size in which nothing reads what is not `kept`: the measure of a cut.

        Blocks that are not kept run, and hand on what they were given, so that the others run at their own places.
        """
        masked = copy.deepcopy(network)
        tensors = dict(named_tensors(masked))
        with torch.no_grad():
            for axis in self.axes:
                dropped = sorted(set(range(axis.size)) - set(kept.get(axis.name, range(axis.size))))
                for tie in axis.ties:
                    if tie.reads and dropped:
                        tensors[tie.tensor].index_fill_(tie.dim, _flat(tie, dropped), 0.0)
        for block in self.gone(kept):
            masked.get_submodule(block).register_forward_hook(_handed_on, with_kwargs=True)
        return masked

    def renamed(self, network: nn.Module, name: str, kept: Kept) -> str:
        """Return what the module of `network` called `name` is called once only `kept` is left of it.

        A block that is gone gives the one before it in its container, or the first that is left.
        """
        gone = self.gone(kept)
        parts: list[str] = []
        original = ""
        for part in filter(None, name.split(".")):
            container = network.get_submodule(original)
            children = list(container._modules)
            leaving = {child for child in children if f"{original}.{child}".removeprefix(".") in gone}
            if leaving and isinstance(container, nn.Sequential | nn.ModuleList):
                left = sum(child not in leaving for child in children[: children.index(part) + 1])
                parts.append(str(max(left - 1, 0)))
                if part in leaving:
                    break
            else:
                parts.append(part)
            original = f"{original}.{part}".removeprefix(".")
        return ".".join(parts)


def _handed_on(block: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, object], output: Any) -> Any:
    """Return what `block` was given of the shape of what it gave, in that form: a tensor, or several after it."""
    made = output if isinstance(output, Tensor) else output[0]
    given = next(part for part in (*inputs, *named.values()) if isinstance(part, Tensor) and part.shape == made.shape)
    return given if isinstance(output, Tensor) else (given, *output[1:])


def _inverse(places: Tensor) -> Tensor:
    """Return for each place that stays where it is once the others are gone."""
    moved = torch.full((int(places.max()) + 1,), -1, dtype=torch.int64)
    moved[places] = torch.arange(len(places))
    return moved


def _order_left(order: Sequence[int], kept: Sequence[int]) -> tuple[int, ...]:
    """Return the ranks of what is `kept`, which are numbered anew."""
    number = {unit: index for index, unit in enumerate(kept)}
    return tuple(number[unit] for unit in order if unit in number)


def _write(network: nn.Module, places: Places) -> None:
    """Put the cut tensors into the network; tied ones stay tied."""
    named = dict(named_tensors(network))
    cut: dict[int, Tensor] = {}
    for name, dims in places.items():
        tensor = named[name]
        if id(tensor) not in cut:
            value = picked(tensor.detach(), dims).clone()
            is_weight = isinstance(tensor, nn.Parameter)
            cut[id(tensor)] = nn.Parameter(value, requires_grad=tensor.requires_grad) if is_weight else value
    touched = set()
    for name, tensor in named.items():
        if id(tensor) in cut:
            path, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(path), leaf, cut[id(tensor)])
            touched.add(path)
    for path in touched:
        _refit(network.get_submodule(path))


def picked(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Return what stays of `tensor`, by dimension the places that do: itself where none is named."""
    for dim, places in dims.items():
        tensor = tensor.index_select(dim, places.to(tensor.device))
    return tensor


def named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer under every name that it has."""
    parameters = list(network.named_parameters(remove_duplicate=False))
    return [*parameters, *network.named_buffers(remove_duplicate=False)]


def _flat(tie: Tie, units: Sequence[int]) -> Tensor:
    return tie.places[list(units)].reshape(-1)


def _refit(layer: nn.Module) -> None:
    """Set a layer's size attributes to the sizes of its weights."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) and layer.groups == 1:
        layer.in_channels, layer.out_channels = weight.shape[:2]
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if layer.groups > 1 and layer.groups == layer.in_channels:  # depthwise
            layer.groups = weight.shape[0] * layer.groups // layer.out_channels
        layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_features = weight.shape[0]
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = weight.shape[0]
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif hasattr(layer, "nx") and hasattr(layer, "nf"):  # the transposed linear layer of GPT-2
        layer.nx, layer.nf = weight.shape  # type: ignore[assignment]


def _set(network: nn.Module, attribute: str, value: int) -> None:
    """Set a number of a module, or of a configuration that it holds, which is its own from then on."""
    path, _, name = attribute.rpartition(".")
    holder, _, leaf = path.rpartition(".")
    owner: Any = operator.attrgetter(path)(network) if path else network
    if not isinstance(owner, nn.Module):
        owner = copy.copy(owner)
        setattr(network.get_submodule(holder), leaf, owner)
    before = getattr(owner, name)
    setattr(owner, name, tuple(value if n > 1 else n for n in before) if isinstance(before, tuple) else value)


# Its source, and that of `_refit`, stands in exported students: neither calls anything of kdnas.
def remove_blocks(network: nn.Module, blocks: Sequence[str]) -> None:
    """Take blocks out of their containers by dotted names; what is no list of blocks gets the identity instead."""
    parents = dict.fromkeys(name.rpartition(".")[0] for name in blocks)
    containers = {parent: network.get_submodule(parent) for parent in parents}  # those inside one are renamed with it
    for parent, container in containers.items():
        leaving = {name.rpartition(".")[2] for name in blocks if name.rpartition(".")[0] == parent}
        if isinstance(container, nn.Sequential | nn.ModuleList):
            for index in reversed([i for i, name in enumerate(container._modules) if name in leaving]):
                del container[index]
        else:
            for name in leaving:
                setattr(container, name, nn.Identity())


def _leave_out(network: nn.Module, blocks: Sequence[str]) -> None:
    """Take `blocks` out, and number those that stay in their containers anew, as the configuration counts them."""
    lists: dict[str, tuple[int, list[int]]] = {}
    containers: list[nn.Module] = []
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in blocks):
        container = network.get_submodule(parent)
        if isinstance(container, nn.Sequential | nn.ModuleList):
            places = [i for i, name in enumerate(container._modules) if f"{parent}.{name}".removeprefix(".") in blocks]
            lists[parent] = len(container), places
            containers.append(container)
    remove_blocks(network, blocks)
    for container in containers:
        for index, block in enumerate(container.children()):
            for module in block.modules():
                for number in ("layer_idx", "layer_id"):  # caches are kept by layer
                    if isinstance(getattr(module, number, None), int):
                        setattr(module, number, index)
    leave_out_of_lists(network, lists)


_SHARES = (0.5, 0.75)
"""What a part is tried at: a half, which code may happen to bear that knows of the whole, and no half."""
_WITH_ALL_BLOCKS = 0.75
"""The share at which no block is left out beside other cuts, which it would hide if these are wrong in it."""
TOLERANCE = 1e-4
"""The largest difference of an output, as a share of the largest output."""


def part_of(anatomy: Anatomy, names: Collection[str]) -> Anatomy:
    """Return `anatomy` with these axes and depths alone."""
    return dataclasses.replace(
        anatomy,
        axes=tuple(axis for axis in anatomy.axes if axis.name in names),
        depths=tuple(depth for depth in anatomy.depths if depth.name in names),
    )


def sound_part(anatomy: Anatomy, network: nn.Module, example: Example) -> Anatomy:
    """Return `anatomy` without the axes and blocks that `network`, in eval mode, cannot be cut along.

    All parts together are cut to half and to three quarters, to units from all over, and run on `example`. What fails,
    or computes something else than the masked network, is left whole, and the reason stands in `uncut`. Parts that are
    inexact by nature, which lie under norms, are compared with the norms taken as scales.
    """
    faults: dict[str, str] = {}
    while found := _faults(anatomy, network, example, [part for part in anatomy.parts if part.name not in faults]):
        faults.update(found)  # what is left may still be wrong together
    uncut = [Uncut(name, why) for name, why in faults.items()]
    sound = part_of(anatomy, anatomy.by_name.keys() - faults.keys())
    return dataclasses.replace(sound, uncut=(*anatomy.uncut, *uncut))


def _faults(
    anatomy: Anatomy, network: nn.Module, example: Example, parts: Sequence[Axis | Depth]
) -> list[tuple[str, str]]:
    """Return the parts that cannot be cut, and why: looked for by halving, since most networks have none."""
    if not parts:
        return []
    exact = [part for part in parts if isinstance(part, Depth) or not part.inexact]
    mixed = len(exact) not in (0, len(parts))

    def fault(parts: Sequence[Axis | Depth]) -> str:
        all_exact = all(part in exact for part in parts)
        tried = (_fault(anatomy, network, example, parts, share, exact=all_exact) for share in _SHARES)
        return next(filter(None, tried), "")

    if not mixed and not (why := fault(parts)):
        return []
    if len(parts) == 1:
        return [(parts[0].name, why)]
    middle = len(parts) // 2
    halves = parts[:middle], parts[middle:]
    if mixed:  # what is exact is held to that first, and then together with the rest
        halves = exact, [part for part in parts if part not in exact]
    if found := [one for half in halves for one in _faults(anatomy, network, example, half)]:
        return found
    if mixed and not fault(parts):
        return []
    sound = list(halves[0])  # each half can be cut, both cannot
    for part in halves[1]:
        if why := fault([*sound, part]):
            found.append((part.name, f"together with other cuts, {why}"))
        else:
            sound.append(part)
    return found


def _fault(
    anatomy: Anatomy, network: nn.Module, example: Example, parts: Sequence[Axis | Depth], share: float, *, exact: bool
) -> str:
    """Return what is wrong with the network that is cut along `parts` to a share of each; empty where nothing is."""
    whole = share == _WITH_ALL_BLOCKS and not all(isinstance(part, Depth) for part in parts)
    kept = {part.name: _spread(part, share) for part in parts if not (whole and isinstance(part, Depth))}
    try:
        cut = outputs(anatomy.cut(network, kept), example)
        masked = outputs(anatomy.mask(network, kept), example)
    except Exception as error:  # it runs the user's own module, which may raise anything
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
        return f"the cut network does not run, for its code counts on the whole size ({reason})"
    if not bool(torch.isfinite(cut).all()):
        return "the cut network's outputs are not finite"
    if not exact:
        return _fault_without_norms(anatomy, network, example, kept)
    return _difference(cut, masked)


def _fault_without_norms(anatomy: Anatomy, network: nn.Module, example: Example, kept: Kept) -> str:
    """Return what is wrong with a cut that is inexact by nature, once that nature is taken away; empty: nothing is.

    Without its norms a network's numbers grow, so it is run in float64. What that does not work for is taken for right.
    """
    cut, masked = anatomy.cut(network, kept), anatomy.mask(network, kept)
    for dtype in (torch.float64, torch.float32):
        given = tuple(part.to(dtype) if part.is_floating_point() else part for part in in_order(example))
        try:
            with norms_as_scales(cut, masked):
                ours, theirs = outputs(cut.to(dtype), given), outputs(masked.to(dtype), given)
        except Exception:  # the user's own module, which may be of one type
            continue
        return _difference(ours, theirs) if bool(torch.isfinite(theirs).all()) else ""
    return ""


def _difference(cut: Tensor, masked: Tensor) -> str:
    """Return by how much the outputs of a cut network differ from the masked one's; empty where they do not."""
    gap = float((cut - masked).abs().max() / masked.abs().max().clamp_min(1e-12))
    return "" if gap <= TOLERANCE else f"the cut network's outputs differ from the masked one's by {gap:.1e} of them"


def _spread(part: Axis | Depth, share: float) -> tuple[int, ...]:
    """Return what of a part is kept at `share`: units from all over it, of which no two may depend on one another."""
    count = len(part.blocks) if isinstance(part, Depth) else part.size
    kept = max(part.least, int(share * count))
    if isinstance(part, Depth):
        return tuple(sorted(part.order[:kept]))
    return tuple(unit * count // kept for unit in range(kept))


def outputs(network: nn.Module, example: Example, *, grad: bool = False) -> Tensor:
    """Return the logits of `network` on `example`, in whatever form it gives them, as float32."""
    with torch.set_grad_enabled(grad):
        answer = network(*in_order(example))
    logits = getattr(answer, "logits", answer)
    if isinstance(logits, Mapping):
        logits = logits.get("logits", next(iter(logits.values())))
    if isinstance(logits, tuple | list):
        logits = logits[0]
    assert isinstance(logits, Tensor)
    return logits.float()


def in_order(example: Example, count: int | None = None) -> tuple[Tensor, ...]:
    """Return the inputs of an example, of its first `count` samples; None: of all."""
    given = (example,) if isinstance(example, Tensor) else example
    return tuple(taken[:count] for taken in given)


def inside(module: nn.Module, example: Example) -> tuple[nn.Module, Example]:
    """Return the network behind the entrance of `module`, and its inputs when `module` gets `example`.

    Raises ValueError where that is not what the network takes first.
    """
    network, fed = module, example
    for part in module.modules():
        if isinstance(part, Normalised | LogitsOf):
            network = part.network
        if isinstance(part, ClassLogitsOf) and part.by_name:
            name = type(part.network).__name__
            raise ValueError(f"a {name} is given its inputs by name, and students are not cut out of such a network")
    if network is module:
        return module, example

    def watch(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal fed
        fed = inputs[0].detach() if len(inputs) == 1 else tuple(taken.detach() for taken in inputs)

    handle = network.register_forward_pre_hook(watch)
    try:
        outputs(module, example)
    finally:
        handle.remove()
    return network, fed
