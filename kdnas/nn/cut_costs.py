"""What every cut of a network costs, in closed form: multiply-accumulates and parameters, without building it.

One traced forward pass of the whole network lists its operators. An operator that multiplies by a parameter does so
much work for every number in it; how many numbers a cut leaves follows from the anatomy's ties. Products of activations
alone (attention's two) are traced once more in a few cut networks, which shows the axes that their sides follow.

    cost = sum over operators of [its block stays] x constant x product of sides
    side = constant + sum over axes of slope x (units kept)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdnas.core.measurement import Price
from kdnas.nn.cutting import Anatomy, Example, in_order, outputs
from kdnas.nn.tracing import ProductsSeen, whole_operators_taken_apart

Side = tuple[int, tuple[tuple[str, int], ...]]
"""Constant, and by axis the slope: how many places one unit has."""
_aten = torch.ops.aten
_ADDED = (_aten.addmm, _aten.baddbmm, _aten.addmv, _aten.addbmm)
"""Products that are added to what comes first among their arguments."""
_OF_MATRICES = (_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm)
_Floats = NDArray[np.float64]
_SIDES = 3
"""Sides of one product that may follow an axis."""


@dataclass(frozen=True)
class _Work:
    """One product: `constant` x the product of `sides`, done while the block called `block` runs ("": always)."""

    constant: int
    sides: tuple[Side, ...]
    block: str


class CutCosts:
    """The MACs and parameters of every cut of one network.

    Args:
        anatomy: The network's, its blocks ranked as they will be cut.
        network: In eval mode.
        example: A batch that it can be run on; costs are those of its first sample.

    Raises ValueError where the network does not do the same operators at all sizes.
    """

    def __init__(self, anatomy: Anatomy, network: nn.Module, example: Example):
        self._places = {axis.name: index for index, axis in enumerate(anatomy.axes, 1)}
        blocks = [block for depth in anatomy.depths for block in depth.blocks]
        self._blocks = {"": 0, **{block: index for index, block in enumerate(blocks, 1)}}
        self._ranked = {
            depth.name: np.array([self._blocks[depth.blocks[index]] for index in depth.order], dtype=np.int64)
            for depth in anatomy.depths
        }
        self._whole = np.array([1.0, *(axis.size for axis in anatomy.axes)])
        tensors = _Tensors(anatomy, network)
        parameters = [_Work(1, sides, tensors.block(name)) for name, sides in tensors.parameters]
        self._table = self._tabled((_products(anatomy, network, in_order(example, 1), tensors), parameters))

    def price(self, sizes: Mapping[str, int]) -> Price:
        """Return the costs of the network cut to `sizes`, by the name of an axis or depth; others stay whole."""
        units, kept = self._whole.copy(), np.ones(len(self._blocks))
        for name, size in sizes.items():
            place = self._places.get(name)
            if place is None:
                kept[self._ranked[name][size:]] = 0.0
            else:
                units[place] = size
        macs, params = self._table.totals(units, kept)
        return Price(macs=int(macs), params=int(params))

    def _tabled(self, costs: Sequence[Sequence[_Work]]) -> _Table:
        forms: dict[Side, int] = {(1, ()): 0}
        merged: dict[tuple[int, ...], list[float]] = {}
        for cost, one in ((cost, one) for cost, work in enumerate(costs) for one in work):
            moving = [side for side in one.sides if side[1]]
            if len(moving) > _SIDES:
                raise ValueError(f"a product of the network follows the sizes of {len(moving)} axes")
            places = sorted(forms.setdefault(side, len(forms)) for side in moving)
            key = (self._blocks[one.block], *places, *[0] * (_SIDES - len(places)))
            constant = one.constant * math.prod(side[0] for side in one.sides if not side[1])
            merged.setdefault(key, [0.0] * len(costs))[cost] += constant
        slopes = np.zeros((len(forms), len(self._whole)))
        for (constant, axes), row in forms.items():
            slopes[row, 0] = constant
            for axis, slope in axes:
                slopes[row, self._places[axis]] += slope
        keys = np.array(list(merged), dtype=np.int64).reshape(-1, 1 + _SIDES)
        return _Table(slopes, keys[:, 1:].T.copy(), keys[:, 0].copy(), np.array(list(merged.values())).T.copy())


@dataclass(frozen=True)
class _Table:
    """Products of up to three sides, as arrays; float64 holds whole numbers up to 2^53 exactly."""

    slopes: _Floats
    """[sides, 1 + axes]."""
    sides: NDArray[np.int64]
    """[3, products]: the rows of `slopes` that are multiplied."""
    blocks: NDArray[np.int64]
    """[products]."""
    constants: _Floats
    """[costs, products]."""

    def totals(self, units: _Floats, kept: _Floats) -> _Floats:
        """Return the sum of the products by cost, at `units` [1 + axes], of the blocks that are `kept` [1 + blocks]."""
        first, second, third = (self.slopes @ units)[self.sides]
        return self.constants @ (first * second * third * kept[self.blocks])


class _Tensors:
    """The parameters of a network: which of their sides follow which axes."""

    def __init__(self, anatomy: Anatomy, network: nn.Module):
        self._blocks = [block for depth in anatomy.depths for block in depth.blocks]
        names: dict[int, list[str]] = {}
        named = dict(network.named_parameters(remove_duplicate=False))
        for name, parameter in named.items():
            names.setdefault(id(parameter), []).append(name)
        places: dict[tuple[str, int, str], set[int]] = {}
        first = {name: same[0] for same in names.values() for name in same}
        for axis in anatomy.axes:
            for tie in axis.ties:
                if tie.tensor in first:
                    places.setdefault((first[tie.tensor], tie.dim, axis.name), set()).update(
                        tie.places.flatten().tolist()
                    )
        units = {axis.name: axis.size for axis in anatomy.axes}
        self._sides: dict[str, tuple[Side, ...]] = {}
        self._by_storage: dict[tuple[int, int, int], str] = {}
        for same in names.values():
            parameter = named[same[0]]
            sides = []
            for dim, size in enumerate(parameter.shape):
                tied = [(axis, len(found)) for (name, d, axis), found in places.items() if (name, d) == (same[0], dim)]
                slopes = tuple((axis, count // units[axis]) for axis, count in tied)
                sides.append((size - sum(count for _, count in tied), slopes))
            self._sides[same[0]] = tuple(sides)
            self._by_storage[_where(parameter)] = same[0]

    @property
    def parameters(self) -> list[tuple[str, tuple[Side, ...]]]:
        """Every parameter once, with its sides."""
        return list(self._sides.items())

    def block(self, name: str) -> str:
        """Return the removable block that the parameter called `name` stands in, empty where it is in none."""
        return next((block for block in self._blocks if name.startswith(f"{block}.")), "")

    def is_one(self, operand: Any) -> bool:
        """Whether the operand of a product is a parameter."""
        return isinstance(operand, Tensor) and _where(operand) in self._by_storage

    def found(self, operand: Tensor) -> tuple[Side, ...]:
        """Return the sides of the parameter that an operand of a product is."""
        return self._sides[self._by_storage[_where(operand)]]


def _where(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.numel()


@dataclass(frozen=True)
class _Seen:
    """One product as it ran: the numbers whose product is its MACs, and the sides of its parameter where it has one."""

    operator: str
    block: str
    factors: tuple[int, ...]
    weight: tuple[Side, ...] | None
    places: tuple[int, ...]
    """Which of the factors are sides of no parameter."""


class _Recorder:
    """Lists the products that a network does."""

    def __init__(self, tensors: _Tensors | None):
        self._tensors = tensors
        self.block = ""
        self.seen: list[_Seen] = []

    def note(self, operator: Any, args: tuple[Any, ...], macs: int) -> None:
        """Add one to the list."""
        left, right = args[1:3] if operator in _ADDED else args[:2]
        of_rows = operator in (_aten.mm, _aten.addmm)
        factors = (*left.shape, right.shape[-1]) if operator in _OF_MATRICES else (macs,)
        weight, places = None, tuple(range(len(factors)))
        ours = [one for one in (right, left) if self._tensors is not None and self._tensors.is_one(one)]
        if self._tensors is not None and (len(ours) == 1 or (ours and of_rows)):
            weight = self._tensors.found(ours[0])
            # a matrix times rows of numbers, of which channels may be: layers that mix tokens
            places = () if not of_rows else (0,) if ours[0] is right else (2,)
        self.seen.append(_Seen(str(operator), self.block, factors, weight, places))


@contextmanager
def _noting_blocks(network: nn.Module, anatomy: Anatomy, recorder: _Recorder) -> Iterator[None]:
    """Within it, `recorder` records which removable block runs."""

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            recorder.block = name

        return hook

    handles = []
    for block in (block for depth in anatomy.depths for block in depth.blocks):
        module = network.get_submodule(block)
        handles += [module.register_forward_pre_hook(enter(block)), module.register_forward_hook(enter(""))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _traced(network: nn.Module, anatomy: Anatomy, example: Example, tensors: _Tensors | None) -> list[_Seen]:
    recorder = _Recorder(tensors)
    noting = _noting_blocks(network, anatomy, recorder)
    with whole_operators_taken_apart(), noting, torch.no_grad(), ProductsSeen(recorder.note):
        outputs(network, example)
    return recorder.seen


def _products(anatomy: Anatomy, network: nn.Module, example: Example, tensors: _Tensors) -> list[_Work]:
    """Return what one forward pass multiplies."""
    seen = _traced(network, anatomy, example, tensors)
    sides = _sides_of_activations(anatomy, network, example, seen)
    work = []
    for index, one in enumerate(seen):
        free = sides.get(index, ())
        if one.weight is None:
            work.append(_Work(1, free, one.block))
        else:
            numbers = math.prod(_size(side, anatomy) for side in (*one.weight, *free))
            work.append(_Work(math.prod(one.factors) // numbers, (*one.weight, *free), one.block))
    return work


def _size(side: Side, anatomy: Anatomy) -> int:
    constant, slopes = side
    return constant + sum(slope * anatomy.sizes[axis] for axis, slope in slopes)


def _sides_of_activations(
    anatomy: Anatomy, network: nn.Module, example: Example, seen: Sequence[_Seen]
) -> dict[int, tuple[Side, ...]]:
    """Return by its place the sides of every product in `seen` that are no parameter's.

    Every axis has a number, and one network is traced for each binary digit: there the axes that have the digit lack a
    unit. The networks in which a side is another one spell the axis that it follows. Where sides follow several axes
    each axis is traced by itself.
    """
    axes = [axis for axis in anatomy.axes if axis.size > axis.least]
    sizes = {axis.size for axis in axes}

    def may_follow(one: _Seen) -> bool:
        """Rows that a parameter multiplies are channels where there are as many, or several times as many."""
        return one.weight is None or any(one.factors[place] % size == 0 for place in one.places for size in sizes)

    wanted = [index for index, one in enumerate(seen) if may_follow(one)]
    if not wanted:
        return {}
    digits = [
        [axis for number, axis in enumerate(axes, 1) if number >> digit & 1] for digit in range(len(axes).bit_length())
    ]
    for groups in (digits, [[axis] for axis in axes]):
        traces = [
            _traced(anatomy.cut(network, anatomy.prefix({a.name: a.size - 1 for a in group})), anatomy, example, None)
            for group in groups
        ]
        if any([one.operator for one in trace] != [one.operator for one in seen] for trace in traces):
            raise ValueError("a cut network does other operators than the whole one")
        try:
            return {
                index: tuple(
                    _side(seen[index].factors[place], [trace[index].factors[place] for trace in traces], groups)
                    for place in seen[index].places
                )
                for index in wanted
            }
        except _SeveralAxes:
            continue
    raise AssertionError("an axis by itself has a cost")


class _SeveralAxes(Exception):
    """A side follows several axes, which traces of several axes do not separate."""


def _side(whole: int, cut: Sequence[int], groups: Sequence[Sequence[Any]]) -> Side:
    """Return the side that is `whole` in the whole network, and `cut[i]` where the axes of `groups[i]` lack a unit."""
    changed = [index for index, value in enumerate(cut) if value != whole]
    if all(len(group) == 1 for group in groups):
        slopes = {groups[index][0]: whole - cut[index] for index in changed}
    elif changed:
        followed = [
            axis
            for axis in itertools.chain(*groups)
            if [i for i, group in enumerate(groups) if axis in group] == changed
        ]
        steps = {whole - cut[index] for index in changed}
        if len(steps) > 1 or not followed:
            raise _SeveralAxes
        slopes = {followed[0]: steps.pop()}
    else:
        slopes = {}
    constant = whole - sum(slope * axis.size for axis, slope in slopes.items())
    return constant, tuple((axis.name, slope) for axis, slope in slopes.items())
