"""Channels that go together in a network of any make, followed through one run of it.

For networks that torch-pruning cannot trace. The outputs of a layer are channels of their own, which go together with
those that they are added to or multiplied by. What takes them apart, joins them with others or mixes them leaves them
whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdnas.nn.anatomy._ties import runs
from kdnas.nn.cutting import NORM_OVER_CHANNELS, Axis, Example, Tie, Uncut, in_order, named_tensors

_ANSWERS = "they are what the network answers"


def followed(network: nn.Module, example: Example) -> tuple[list[Axis], list[Uncut]]:
    """Return the axes of channels that `network` hands on whole, run on `example`, and those that it does not."""
    follower = _Follower(network)
    with torch.no_grad(), follower:
        answer = network(*in_order(example))
    follower.leave(tree_leaves(getattr(answer, "logits", answer)), _ANSWERS)
    axes, uncut = list[Axis](), list[Uncut]()
    for group in dict.fromkeys(map(follower.root, follower.groups)):
        name, reads = f"{group.writer}.channels", any(tie.reads for tie in group.ties)
        if group.why == _ANSWERS:
            continue
        if group.why or not reads:
            uncut.append(Uncut(f"the channels of {group.writer}", group.why or "no layer of the network reads them"))
        else:
            axes.append(Axis(name, "width", group.size, tuple(group.ties), inexact=group.inexact))
    return axes, uncut


@dataclass(eq=False)
class _Group:
    """Channels that go together; `into` is the group that it became a part of."""

    writer: str
    size: int
    ties: list[Tie] = field(default_factory=list)
    why: str = ""
    """Why they stay whole; empty: they may be cut."""
    inexact: str = ""
    into: _Group | None = None


@dataclass(frozen=True)
class _Flow:
    """Where in a tensor a group's channels are: in this dimension, counted from the last (-1).

    One that is longer than the group has a run of places for every channel.
    """

    group: _Group
    dim: int


_aten = torch.ops.aten
_HANDED_ON = (
    *(_aten.clone, _aten._to_copy, _aten.detach, _aten.alias, _aten.hardtanh_, _aten.native_dropout),
    *(_aten.max_pool2d_with_indices, _aten.avg_pool2d, _aten._adaptive_avg_pool2d, _aten.adaptive_max_pool2d),
    *(_aten.avg_pool1d, _aten.constant_pad_nd, _aten.reflection_pad2d, _aten.replication_pad2d, _aten.roll, _aten.flip),
    *(_aten.upsample_nearest2d, _aten.upsample_bilinear2d, _aten.upsample_bicubic2d, _aten.mean, _aten.sum, _aten.amax),
    *(_aten.slice, _aten.expand, _aten.hardswish, _aten.hardswish_, _aten.gelu, _aten.index, _aten.lift_fresh),
)
"""Give channels as they are given them, where these are in a dimension as long as before."""
_BATCH_NORMS = (
    *(_aten.native_batch_norm, _aten._native_batch_norm_legit, _aten._native_batch_norm_legit_no_training),
    *(_aten.cudnn_batch_norm, _aten.batch_norm, _aten._batch_norm_no_update),
)
_SHAPES = (_aten.view, _aten._unsafe_view, _aten.reshape, _aten.squeeze, _aten.unsqueeze, _aten._reshape_alias)
_ORDERS = (_aten.permute, _aten.transpose, _aten.t)


class _Follower(TorchDispatchMode):
    """Notes, while a network runs, which channels meet."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self._named: dict[tuple[int, int, int], tuple[str, Tensor]] = {}
        self._tensors = dict(named_tensors(network))
        for name, tensor in self._tensors.items():
            self._named.setdefault(_where(tensor), (name, tensor))
        self._flows: dict[int, _Flow] = {}
        self._alive: list[Tensor] = []  # an id is a tensor's as long as that is there
        self._owners: dict[tuple[str, int], _Group] = {}
        self.groups: list[_Group] = []

    def root(self, group: _Group) -> _Group:
        """Return the group that `group` is a part of."""
        while group.into is not None:
            group = group.into
        return group

    def leave(self, tensors: Sequence[Any], why: str) -> None:
        """Leave whole what flows in `tensors`."""
        for flow in filter(None, map(self._flow, tensors)):
            self.root(flow.group).why = self.root(flow.group).why or why

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        made = next((part for part in tree_leaves(result) if isinstance(part, Tensor)), None)
        if made is None:
            return result
        operator = func._overloadpacket
        rules: dict[Any, Callable[[], _Flow | None]] = {
            _aten.convolution: lambda: self._convolution(*args),
            _aten.addmm: lambda: self._product(args[1], args[2], args[0]),
            _aten.mm: lambda: self._product(args[0], args[1], None),
            _aten.native_layer_norm: lambda: self._norm(args[0], -1, given[1:]) if len(args[1]) == 1 else None,
            _aten.native_group_norm: lambda: self._norm(args[0], 1 - args[0].ndim, given[1:]) if args[6] == 1 else None,
            _aten.cat: lambda: self._joined(given, args[1] if len(args) > 1 else 0),
            _aten._prelu_kernel: lambda: self._meeting(given),
            **dict.fromkeys(_BATCH_NORMS, lambda: self._batch_norm(given)),
            **dict.fromkeys(_SHAPES, lambda: self._reshaped(given[0], made)),
            **dict.fromkeys((_aten.im2col, _aten.col2im), lambda: self._windows(given[0], made)),
            **dict.fromkeys(_ORDERS, lambda: self._reordered(func, args, given[0])),
            **dict.fromkeys(_HANDED_ON, lambda: self._handed_on(given, made)),
        }
        rule = rules.get(operator)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = lambda: self._meeting(given)  # noqa: E731 - as short as the others
        flow = rule() if rule is not None else None
        if flow is None:
            self.leave(given, f"torch's {operator.__name__} takes them apart or joins them")
        else:
            self._flows[id(made)] = flow
        self._alive.append(made)
        return result

    # -- what flows where --------------------------------------------------------------------------------------------

    def _flow(self, tensor: Any) -> _Flow | None:
        return self._flows.get(id(tensor))

    def _new(self, name: str, tensor: Tensor, dim: int, bias: Tensor | None) -> _Group:
        """Return the group of the outputs of the layer whose weight is called `name`."""
        group = _Group(name.rpartition(".")[0] or name, tensor.shape[dim])
        self.groups.append(group)
        self._tie(group, name, dim)
        if bias is not None and (own := self._named.get(_where(bias))) is not None:
            self._tie(group, own[0], 0)
        return self.root(group)

    def _tie(self, group: _Group, name: str, dim: int, *, reads: bool = False) -> None:
        """Note that the channels of `group` are in a tensor; those of another group that are, too, go with them."""
        group = self.root(group)
        owner = self._owners.setdefault((name, dim), group)
        if self.root(owner) is not group:
            self._together(owner, group)
        elif all((tie.tensor, tie.dim) != (name, dim) for tie in group.ties):
            length = self._tensors[name].shape[dim]
            if length % group.size:
                group.why = group.why or "they have no whole number of places each in a layer"
            else:
                group.ties.append(Tie(name, dim, runs(group.size, length // group.size), reads=reads))

    def _together(self, one: _Group, other: _Group) -> None:
        one, other = self.root(one), self.root(other)
        if one is other:
            return
        if self.groups.index(other) < self.groups.index(one):
            one, other = other, one
        size, more = sorted((one.size, other.size))
        one.why = one.why or other.why or ("they meet those of another layer unevenly" if more % size else "")
        one.inexact = one.inexact or other.inexact
        ties = [*one.ties, *other.ties]
        if not one.why:  # a channel of the fewer goes with a run of the others
            ties = [dataclasses.replace(tie, places=tie.places.reshape(size, -1)) for tie in ties]
        one.size, one.ties, other.into = size, ties, one

    # -- operators: each returns what flows in its result, None where it is not followed ------------------------------

    def _convolution(self, given: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> _Flow | None:
        transposed, groups = settings[3], settings[5]
        known, flow = self._named.get(_where(weight)), self._flow(given)
        if known is None:
            return None
        name, channel = known[0], 1 - given.ndim
        if groups == 1:
            if flow is not None and flow.dim == channel:
                self._tie(flow.group, name, 0 if transposed else 1, reads=True)
            else:
                self.leave([given], "a convolution reads them along its window")
            return _Flow(self._new(name, known[1], 1 if transposed else 0, bias), channel)
        if transposed or groups != given.shape[1] or flow is None or flow.dim != channel:
            return None
        return self._with_parameters(flow, (weight,) if bias is None else (weight, bias))  # perhaps several of each

    def _product(self, given: Tensor, weight: Tensor, bias: Tensor | None) -> _Flow | None:
        known, flow = self._named.get(_where(weight)), self._flow(given)
        if known is None or known[1].ndim != 2:
            return None
        name, tensor = known
        turned = weight.stride() != tensor.stride() or weight.shape != tensor.shape  # as nn.Linear has it
        if flow is not None and flow.dim == -1:
            self._tie(flow.group, name, 1 if turned else 0, reads=True)
        else:
            self.leave([given], "a linear layer mixes what else flows")
        return _Flow(self._new(name, tensor, 0 if turned else 1, bias), -1)

    def _batch_norm(self, given: Sequence[Tensor]) -> _Flow | None:
        flow = self._flow(given[0])
        if flow is None or flow.dim != 1 - given[0].ndim:
            return None
        return self._with_parameters(flow, given[1:])

    def _norm(self, given: Tensor, dim: int, parts: Sequence[Tensor]) -> _Flow | None:
        """What averages over all channels, which are in dimension `dim`."""
        flow = self._flow(given)
        if flow is None or flow.dim != dim:
            return None
        group = self.root(flow.group)
        group.inexact = NORM_OVER_CHANNELS
        if not parts:
            group.why = group.why or "a norm without weights states how many they are"
        return self._with_parameters(flow, parts)

    def _with_parameters(self, flow: _Flow, parts: Iterable[Tensor]) -> _Flow:
        for part in parts:
            if (own := self._named.get(_where(part))) is not None:
                self._tie(flow.group, own[0], 0)
        return flow

    def _meeting(self, given: Sequence[Tensor]) -> _Flow | None:
        """Elementwise operators: what meets goes together."""
        flows = [flow for part in given if (flow := self._flow(part)) is not None]
        first = flows[0] if flows else None
        if first is None or any(flow.dim != first.dim for flow in flows):
            return None
        lengths = {part.shape[first.dim] for part in given if self._flow(part) is not None}
        if len(lengths) > 1:
            return None
        size = lengths.pop()
        for part in given:
            if self._flow(part) is not None or part.ndim < -first.dim or part.shape[first.dim] == 1:
                continue
            known = self._named.get(_where(part))
            if known is None or part.shape[first.dim] != size:
                return None  # numbers of no layer
            name, tensor = known
            dims = [dim for dim, length in enumerate(tensor.shape) if length == size]
            dim = tensor.ndim + first.dim if tensor.shape == part.shape else dims[-1]
            self._tie(first.group, name, dim)
        for flow in flows[1:]:
            self._together(first.group, flow.group)
        return first

    def _joined(self, given: Sequence[Tensor], dim: int) -> _Flow | None:
        """What is joined along another dimension than the channels'."""
        flow = self._flow(given[0])
        if flow is None or (dim if dim < 0 else dim - given[0].ndim) == flow.dim:
            return None
        return self._meeting(given)

    def _handed_on(self, given: Sequence[Tensor], made: Tensor) -> _Flow | None:
        before, flow = given[0], self._flow(given[0])
        if flow is None or any(self._flow(part) is not None for part in given[1:]):
            return None
        lost = before.ndim - made.ndim  # dimensions that are gone stood behind the channels where they come first
        for dim in (flow.dim, flow.dim + lost):
            if -made.ndim <= dim < 0 and made.shape[dim] == before.shape[flow.dim]:
                return _Flow(flow.group, dim)
        return None

    def _reshaped(self, before: Tensor, made: Tensor) -> _Flow | None:
        """What holds the channels in a dimension of its own, perhaps a run of places behind another for each."""
        flow = self._flow(before)
        if flow is None:
            return None
        ahead, channels = math.prod(before.shape[: flow.dim]), self.root(flow.group).size
        for dim, size in enumerate(made.shape):
            if math.prod(made.shape[:dim]) == ahead and size > 1 and size % channels == 0:
                return _Flow(flow.group, dim - made.ndim)
        return None

    def _windows(self, before: Tensor, made: Tensor) -> _Flow | None:
        """Maps as rows of windows, or these as maps again."""
        flow = self._flow(before)
        return None if flow is None or flow.dim != 1 - before.ndim else _Flow(flow.group, 1 - made.ndim)

    def _reordered(self, func: Any, args: tuple[Any, ...], before: Tensor) -> _Flow | None:
        flow = self._flow(before)
        if flow is None:
            return None
        order = torch.arange(before.ndim)
        if func._overloadpacket is _aten.permute:
            places = [dim % before.ndim for dim in args[1]]
        else:
            one, other = args[1:3] if len(args) > 2 else (0, 1)
            places = order.tolist()
            places[one], places[other] = places[other], places[one]
        return _Flow(flow.group, places.index(before.ndim + flow.dim) - before.ndim)


def _where(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.numel()
