"""The supernet of students that are cut out of a network: that network itself, trained so that each of them is good.

Its units and blocks are ranked (`kdnas.nn.importance`), and a subnet is made of those that rank first: a smaller one is
a part of every larger one. The places of a tensor that a subnet has are picked out of it, and gradients flow back.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdnas.core.arch import Arch
from kdnas.nn.cutting import Anatomy, Kept, Places, named_tensors, picked
from kdnas.nn.elastic import Subnet, Supernet
from kdnas.nn.moulds import Mould


@dataclass(frozen=True)
class Cutting:
    """How students are cut out of a network: what belongs together in it, and what an arch leaves of it."""

    anatomy: Anatomy
    """Ranked."""
    place: str
    """Where the network that is cut lies in a student, as a dotted name; empty: it is all of it."""
    kept: Callable[[Arch], Kept]
    """What of the network is left in an arch."""
    student: Callable[[nn.Module, Arch], nn.Module]
    """A cut network of an arch as its student: behind the preparation of inputs and answers, its taps named."""
    tapped: Callable[[nn.Module, Arch], nn.Module]
    """A student of an arch that still names the taps of the whole one, with its own."""


class CutSupernet(Supernet):
    """The students of `cutting` on shared weights, those of `whole`: the student that is the whole network.

    Batch-norm statistics of subnets smaller than that are not gathered: they are estimated once one is cut out.
    """

    def __init__(self, whole: nn.Module, cutting: Cutting):
        super().__init__()
        self.whole = whole
        self._cutting = cutting
        weightless = {id(weight): nn.Parameter(weight.to("meta")) for weight in self.network.parameters()}
        self._mould = Mould(copy.deepcopy(whole, weightless))
        self._renamed: dict[tuple[str, ...], dict[str, str]] = {}

    @property
    def network(self) -> nn.Module:
        """The network that is cut."""
        return self.whole.get_submodule(self._cutting.place)

    def view(self, arch: Arch) -> Subnet:
        """Return `arch` as a network that runs on the shared weights."""
        kept, anatomy = self._cutting.kept(arch), self._cutting.anatomy
        places = anatomy.places(self.network, kept)
        shell = self._mould.cast()
        anatomy.cut_down(shell.get_submodule(self._cutting.place), kept, places)
        shell = self._cutting.tapped(shell, arch)
        pieces = self._pieces(kept, places, list(shell.state_dict()))

        def tensors() -> dict[str, Tensor]:
            shared = dict(named_tensors(self.whole))
            made: dict[int, Tensor] = {}  # what is tied is one tensor
            for name, dims in pieces.values():
                if id(shared[name]) not in made:
                    made[id(shared[name])] = picked(shared[name], dims)
            return {key: made[id(shared[name])] for key, (name, _) in pieces.items()}

        return Subnet(arch, shell, tensors)

    def subnet(self, arch: Arch) -> nn.Module:
        """Return `arch` cut out: the family's module, with copies of the weights, in the supernet's mode."""
        cut = self._cutting.anatomy.cut(self.network, self._cutting.kept(arch))
        return self._cutting.student(cut, arch).train(self.training)

    @torch.no_grad()
    def adopt(self, arch: Arch, student: nn.Module) -> None:
        """Copy the weights of `student`, a module of `arch`, into the places that it has in the network."""
        state, shared = student.state_dict(), dict(named_tensors(self.whole))
        kept = self._cutting.kept(arch)
        places = self._cutting.anatomy.places(self.network, kept)
        for key, (name, dims) in self._pieces(kept, places, list(state)).items():
            whole, part = shared[name], state[key].to(shared[name].device)
            if dims:
                whole[_grid(whole, dims)] = part
            else:
                whole.copy_(part)

    def sort_channels(self) -> None:
        """Leave the units as they are: they were ranked by what they matter in the network as it was given."""

    def _pieces(self, kept: Kept, places: Places, keys: list[str]) -> dict[str, tuple[str, Mapping[int, Tensor]]]:
        """Return for each of `keys` of a student's state dict the shared tensor, and what of it the student has."""
        prefix = f"{self._cutting.place}." if self._cutting.place else ""
        tensors = dict(named_tensors(self.network))
        # Where the tensor is: a view picks them at every forward.
        by_tensor = {
            id(tensors[name]): {dim: stay.to(tensors[name].device) for dim, stay in dims.items()}
            for name, dims in places.items()
        }
        names = self._names(kept, list(tensors))
        whose = {prefix + own: (prefix + name, by_tensor.get(id(tensors[name]), {})) for name, own in names.items()}
        return {key: whose.get(key, (key, {})) for key in keys}

    def _names(self, kept: Kept, tensors: Sequence[str]) -> dict[str, str]:
        """Return what those of the network's `tensors` that stay are called in what is left: blocks are renumbered."""
        anatomy, network = self._cutting.anatomy, self.network
        gone = anatomy.gone(kept)
        if gone not in self._renamed:
            leaving = tuple(f"{name}." for name in gone)
            split = {name: name.rpartition(".") for name in tensors if not name.startswith(leaving)}
            paths = {path: anatomy.renamed(network, path, kept) for path, _, _ in split.values()}
            self._renamed[gone] = {
                name: f"{paths[path]}.{leaf}".removeprefix(".") for name, (path, _, leaf) in split.items()
            }
        return self._renamed[gone]


def _grid(tensor: Tensor, dims: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """Return the index of the places in `dims`, and of all in other dimensions."""
    every = (dims.get(dim, torch.arange(size)).to(tensor.device) for dim, size in enumerate(tensor.shape))
    return tuple(places.view(-1, *[1] * (tensor.ndim - 1 - dim)) for dim, places in enumerate(every))
