"""A supernet: one set of shared weights that holds every network of a search space.

A subnet owns nothing. Each of its tensors is a piece of a shared one: the leading channels, the centre of the kernel,
the first blocks. `Supernet.forward(samples, arch)` runs the very module that the student family builds for that arch on
those pieces, so a subnet that is cut out computes the same. There is no active subnet: the arch is an argument.

A `Layout`, which a student family supplies, maps each tensor of a subnet to the shared tensor that it is a piece of.
Tensors that play different parts (a plain block's convolutions and a bottleneck's, classifiers after different stages)
are never shared. Smaller kernels pass through a learned linear map, which starts as the identity. The supernet of
students cut out of their teacher is the teacher itself (`kdnas.nn.cut_supernet`).

Shapes: B batch, K classes.

Sources: Cai et al., "Once-for-all: train one network and specialize it for efficient deployment" (ICLR 2020); slimmable
networks, Yu et al. (ICLR 2019).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from kdnas.core.arch import Arch

_VIEWS_KEPT = 64


@dataclass(frozen=True)
class SharedTensor:
    """A tensor of the supernet.

    `axes` names the channel axis of each leading dimension, None where the dimension is no channel axis: tensors that
    name the same axis have the same channels there. `side` is the smallest kernel that is cut from it (0: no kernel is
    cut).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    side: int = 0


class Layout(Protocol):
    """How the networks of a space share weights.

    Names encode the place: tensors and channel axes of block b in stage s begin with `stages.<s>.<b>.` (both from 0),
    those of what follows stage number s, from 1, with `exits.<s>.`; the channels that leave it are the axis
    `stream.<s>`.
    """

    @property
    def tensors(self) -> Mapping[str, SharedTensor]:
        """Every shared tensor by its dotted name; the last part is the tensor's name in its layer."""

    @property
    def aligned(self) -> Sequence[Sequence[str]]:
        """Chains of channel axes whose leading channels meet in a parameter-free shortcut; each axis stands in one."""

    def build(self, arch: Arch) -> nn.Module:
        """Return the student family's module for `arch`."""

    def shared_names(self, arch: Arch, keys: Sequence[str]) -> dict[str, str]:
        """Return the shared tensor's name for each of `keys`, the state-dict keys of the module of `arch`."""


class Unfilled(TorchFunctionMode):
    """Inside this context modules are built without drawing their weights: faster, and no random number is used."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class Subnet(nn.Module):
    """One arch of a supernet as a network, without weights of its own.

    `student` is the family's module, a shell: its stages and its classifier can be tapped, its own values mean nothing.
    `tensors` gives its parameters and buffers by name: pieces of the shared ones, gradients flowing back. Training
    flags are this object's.
    """

    def __init__(self, arch: Arch, student: nn.Module, tensors: Callable[[], dict[str, Tensor]]):
        super().__init__()
        self.arch = arch
        self.student = student
        self.tensors = tensors
        self.takes_raw = getattr(student, "takes_raw", False)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Subnet:
        """Apply `function` to every tensor of the shell, as `to` does, but for those that have no values."""
        super()._apply(lambda tensor: tensor if tensor.is_meta else function(tensor), recurse)
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits of the `inputs` [B, ...] that the student takes."""
        logits: Tensor = functional_call(self.student, self.tensors(), inputs)
        return logits


class Supernet(nn.Module):
    """The shared weights of all networks of a search space."""

    def __init__(self) -> None:
        super().__init__()
        self._views: OrderedDict[Arch, Subnet] = OrderedDict()

    def forward(self, samples: Tensor, arch: Arch) -> Tensor:
        """Return the logits [B, K] that `arch` gives for `samples` as its module takes them, in the supernet's mode."""
        view = self.running(arch)
        if view.training != self.training:
            view.train(self.training)
        return view(samples)

    def running(self, arch: Arch) -> Subnet:
        """Return `arch` as a network that runs on the shared weights. Recently used ones are kept."""
        view = self._views.pop(arch, None)
        if view is None:
            view = self.view(arch)
            view.train(self.training)
            if len(self._views) >= _VIEWS_KEPT:
                self._views.popitem(last=False)
        self._views[arch] = view
        return view

    @abstractmethod
    def view(self, arch: Arch) -> Subnet:
        """Return `arch` as a network that runs on the shared weights."""

    @abstractmethod
    def subnet(self, arch: Arch) -> nn.Module:
        """Return `arch` cut out: the family's module, with copies of the weights, in the supernet's mode."""

    @abstractmethod
    def adopt(self, arch: Arch, student: nn.Module) -> None:
        """Copy the weights of `student`, a module of `arch`, into the supernet."""

    @abstractmethod
    def sort_channels(self) -> None:
        """Sort channels by importance, so that narrow subnets keep the most important ones."""


class ElasticSupernet(Supernet):
    """A supernet laid out by a student family, freshly initialised from torch's global generator.

    Running statistics that its subnets gather are its own.
    """

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout
        for name, tensor in layout.tensors.items():
            value = _initial(name, tensor)
            if _is_buffer(name):
                self.register_buffer(_registered(name), value)
            else:
                self.register_parameter(_registered(name), nn.Parameter(value))
            for side in _sides(tensor):
                # The map's difference from the identity, so that weight decay draws it there.
                self.register_parameter(f"{_registered(name)}@{side}", nn.Parameter(torch.zeros(side**2, side**2)))

    def view(self, arch: Arch) -> Subnet:
        """Return `arch` as a network that runs on the shared weights."""
        student = self._shell(arch)
        state = student.state_dict()
        names = self.layout.shared_names(arch, list(state))
        pieces = [(key, names[key], tuple(value.shape)) for key, value in state.items()]
        return Subnet(arch, student, lambda: {key: self.piece(name, shape) for key, name, shape in pieces})

    def subnet(self, arch: Arch) -> nn.Module:
        """Return `arch` cut out: the family's module, with copies of the weights, in the supernet's mode."""
        student = self._shell(arch)
        state = {
            key: value.detach().clone(memory_format=torch.contiguous_format)
            for key, value in self.running(arch).tensors().items()
        }
        student.load_state_dict(state, assign=True)
        return student.train(self.training)

    @torch.no_grad()
    def adopt(self, arch: Arch, student: nn.Module) -> None:
        """Copy the weights of `student`, a module of `arch`, into the supernet.

        Smaller kernels go to the centre of the shared ones: their learned maps are meant to be still the identity.
        """
        state = student.state_dict()
        for key, name in self.layout.shared_names(arch, list(state)).items():
            shared = self.shared(name)
            shared[_corner(tuple(shared.shape), tuple(state[key].shape))].copy_(state[key])

    def shared(self, name: str) -> Tensor:
        """Return the shared tensor called `name`, whole."""
        return getattr(self, _registered(name))

    def piece(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the leading piece of `shape` of the shared tensor called `name`; kernels are cut from the centre."""
        shared = self.shared(name)
        if shared.shape == shape:
            return shared
        if len(shape) < 4 or shared.shape[2:] == shape[2:]:
            return shared[_corner(tuple(shared.shape), shape)]
        kernel = shared[: shape[0], : shape[1]]
        for side in range(shared.shape[3] - 2, shape[3] - 2, -2):
            kernel = kernel[:, :, 1:-1, 1:-1]
            change = getattr(self, f"{_registered(name)}@{side}")
            flat = kernel.reshape(-1, side * side)
            kernel = (flat + flat @ change).view(*kernel.shape)
        return kernel

    @torch.no_grad()
    def sort_channels(self) -> None:
        """Sort channels by importance, so that narrow subnets keep the most important ones.

        A channel's importance is the L1 norm of the weights that read it, summed over their tensors. Along axes that
        meet in a shortcut, channels stay within the widths where such axes end, so that any network at the full widths
        computes what it did before.
        """
        scores = self.importance()
        orders = {axis: score.argsort(descending=True, stable=True) for axis, score in scores.items()}
        for chain in self.layout.aligned:
            orders |= _aligned_orders({axis: scores[axis] for axis in chain if axis in scores})
        for name, tensor in self.layout.tensors.items():
            value = self.shared(name)
            for dimension, axis in enumerate(tensor.axes):
                if axis in orders:
                    value.copy_(value.index_select(dimension, orders[axis]))

    @torch.no_grad()
    def importance(self) -> dict[str, Tensor]:
        """Return each channel axis's importance [C]: the L1 norm of the weights that read a channel."""
        scores: dict[str, Tensor] = {}
        for name, tensor in self.layout.tensors.items():
            if len(tensor.axes) > 1 and tensor.axes[1] is not None:
                score = self.shared(name).abs().transpose(0, 1).flatten(1).sum(dim=1)
                known = scores.get(tensor.axes[1])
                scores[tensor.axes[1]] = score if known is None else _padded_sum(known, score)
        return scores

    def _shell(self, arch: Arch) -> nn.Module:
        with Unfilled():
            return self.layout.build(arch)


def _aligned_orders(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an order for each axis of a chain: channels sorted within the bounds at which axes of the chain end."""
    if not scores:
        return {}
    total = torch.zeros(0)
    for score in scores.values():
        total = _padded_sum(total.to(score.device), score)
    bounds = sorted({len(score) for score in scores.values()})
    parts = [
        low + total[low:high].argsort(descending=True, stable=True)
        for low, high in zip([0, *bounds], bounds, strict=False)
    ]
    order = torch.cat(parts)
    return {axis: order[: len(score)] for axis, score in scores.items()}


def _padded_sum(a: Tensor, b: Tensor) -> Tensor:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    total = longer.clone()
    total[: len(shorter)] += shorter
    return total


def _corner(shared: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the indices of the leading channels, and of the centre of the rest."""
    channels = tuple(slice(part) for part in shape[:2])
    margins = [(whole - part) // 2 for whole, part in zip(shared[2:], shape[2:], strict=True)]
    return channels + tuple(slice(margin, margin + part) for margin, part in zip(margins, shape[2:], strict=True))


def _sides(tensor: SharedTensor) -> range:
    """Return the kernel sides below the full one that are cut from `tensor`."""
    return range(tensor.shape[-1] - 2, tensor.side - 1, -2) if tensor.side else range(0)


def _registered(name: str) -> str:
    return name.replace(".", "/")  # torch refuses dots in names


def _is_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def _initial(name: str, tensor: SharedTensor) -> Tensor:
    """Return a tensor's start: Kaiming's rule for convolutions, torch's for linear layers, norms at scale 1."""
    if not tensor.shape:
        return torch.zeros((), dtype=torch.int64)
    value = torch.zeros(tensor.shape)
    if len(tensor.shape) == 4:
        nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu")
    elif len(tensor.shape) == 2:
        nn.init.kaiming_uniform_(value, a=5**0.5)
    elif name.endswith((".weight", ".running_var")):
        value.fill_(1.0)
    return value
