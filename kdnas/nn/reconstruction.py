"""A cut network's layers fitted anew: each gives from what it is still fed, as nearly as it can, what it gave before.

A layer that reads an axis has lost some of its inputs, and those that are left differ from before, since the layers
under it were cut too. Both are mended in closed form. What the layer read in the whole network, x [F], is predicted
linearly from what it reads in the cut one, s [G], by the ridge regression x - mean = C (s - mean) whose prior is "what
stayed is as it was", as far as that holds on samples kept aside; its weights W become W C. No gradient is needed: one
forward pass of the cut network solves its layers one after the other, each fed by those that are already mended, and
sets its batch norms' statistics as it goes. A layer that gives what it gave before may still mislead the answers, since
it made up for others before: the fit stays where the answers to the samples kept aside are nearer for it.

Sources: least squares on what stays, He et al., "Channel pruning for accelerating very deep neural networks" (ICCV
2017); on inputs that are cut already, Zhang et al., "Accelerating very deep convolutional networks" (PAMI 2016).

Shapes: B samples, F and G features of a layer's input in the whole and in the cut network, N rows: samples, or places
in maps and sequences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdnas.nn.cutting import Anatomy, Example, Kept, in_order, outputs, picked
from kdnas.nn.importance import difference
from kdnas.nn.recalibration import evaluating, has_batch_norms, recalibrate
from kdnas.nn.taps import text_mask

RIDGE = 0.3
"""The prior's weight, in mean variances of what a layer is fed; .1 to 1 did about equally well in one study."""
_HELD_OUT = 0.25
"""The share of the samples held out to check the fit to the others."""
_ROWS = 4096
"""So many rows of a layer are looked at, or four times its features where those are more."""
_COMPARED = 1 << 25
"""Of no more than so many numbers answers are compared: a language model gives thousands a token."""


class _Reader(NamedTuple):
    """A layer that reads axes by one dimension of its weight."""

    layer: str
    weight: str
    dim: int


class Reconstruction:
    """What the layers of a whole network are fed on some samples, and so what cut ones are fitted to.

    Layers are left as they are cut that read within groups, share their weights with others, or are never called.

    Args:
        network: The whole network, in eval mode.
        anatomy: What of it can be cut.
        through: A module that has `network` in it, and takes `inputs`.
        inputs: Samples [B, ...], run at once.
        mask: Which of the inputs is the attention mask [B, T]: padding does not count. None: all counts.
        apart: How far answers of a cut network are from the whole one's.
    """

    def __init__(
        self,
        network: nn.Module,
        anatomy: Anatomy,
        through: nn.Module,
        inputs: Example,
        *,
        mask: int | None = None,
        apart: Callable[[Tensor, Tensor], float] = lambda ours, theirs: float(difference(ours, theirs).mean()),
    ):
        self._network = network
        self._anatomy = anatomy
        self._inputs = in_order(inputs)
        counted = text_mask(self._inputs, mask)
        self._counted = None if counted is None else counted.bool()
        self._apart = apart
        self._readers = _readers(network, anatomy)
        self._fed: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for reader in self._readers:
                stack.callback(network.get_submodule(reader.layer).register_forward_pre_hook(self._note(reader)).remove)
            answers = outputs(through, self._inputs)
        held = min(round(len(answers) * _HELD_OUT), _COMPARED // answers[0].numel())
        self._held = slice(len(answers) - max(1, held), None)
        self._answers = answers[self._held].clone()

    def _note(self, reader: _Reader) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(layer: nn.Module, fed: tuple[Any, ...]) -> None:
            self._fed[reader.layer] = _rows(layer, fed[0], self._counted)

        return note

    @torch.no_grad()
    def mend(self, cut: nn.Module, kept: Kept, through: nn.Module) -> None:
        """Fit the layers of `cut`, what is `kept` of the whole network, and set its batch norms' statistics.

        They stay as they are cut where answers are no nearer for it. `through` has `cut` in it, where the whole network
        was in its own.
        """
        if has_batch_norms(cut):
            recalibrate(through, [self._inputs])
        as_cut, before = copy.deepcopy(cut.state_dict()), self._distance(through)
        self._fit(cut, kept, through)
        if not self._distance(through) < before:
            cut.load_state_dict(as_cut)

    def _distance(self, through: nn.Module) -> float:
        """Return how far the answers to samples that the fit has not seen are from the whole network's."""
        with evaluating(through):
            return self._apart(outputs(through, tuple(taken[self._held] for taken in self._inputs)), self._answers)

    def _fit(self, cut: nn.Module, kept: Kept, through: nn.Module) -> None:
        gone = self._anatomy.gone(kept)
        places = self._anatomy.places(self._network, kept)
        with ExitStack() as stack:
            for reader in self._readers:
                if reader.layer in self._fed and not any(f"{reader.layer}.".startswith(f"{name}.") for name in gone):
                    layer = cut.get_submodule(self._anatomy.renamed(self._network, reader.layer, kept))
                    mending = self._mending(reader, places.get(reader.weight, {}))
                    stack.callback(layer.register_forward_pre_hook(mending).remove)
            recalibrate(through, [self._inputs])

    def _mending(self, reader: _Reader, places: Mapping[int, Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def mend(layer: nn.Module, fed: tuple[Any, ...]) -> None:
            theirs = self._fed[reader.layer]
            ours = _rows(layer, fed[0], self._counted, features=theirs.shape[1])
            whole = self._network.get_parameter(reader.weight).detach()
            stay = places.get(reader.dim, torch.arange(whole.shape[reader.dim]))
            if len(theirs) != len(ours) or len(stay) != ours.shape[1]:
                return
            mixing, offset = _predicting(ours, theirs, stay.to(ours.device))
            whole = picked(whole, {dim: left for dim, left in places.items() if dim != reader.dim})
            weight, bias = layer.weight, getattr(layer, "bias", None)
            assert isinstance(weight, Tensor)
            reading = whole.double().movedim(reader.dim, -1)  # [..., F]
            weight.copy_((reading @ mixing).movedim(-1, reader.dim).to(weight.dtype))
            if isinstance(bias, Tensor):
                lost = reading @ offset  # [outputs, ...]: what every place of a kernel adds
                bias += lost.flatten(1).sum(1).to(bias.dtype) if lost.ndim > 1 else lost.to(bias.dtype)

        return mend


def _readers(network: nn.Module, anatomy: Anatomy) -> list[_Reader]:
    """Return the layers whose whole input is mixed by a weight of their own."""
    read: dict[str, set[int]] = {}
    for axis in anatomy.axes:
        for tie in axis.ties:
            if tie.reads:
                read.setdefault(tie.tensor, set()).add(tie.dim)
    owners: dict[int, int] = {}
    for _, parameter in network.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    readers = []
    for tensor, dims in read.items():
        layer, _, name = tensor.rpartition(".")
        grouped = getattr(network.get_submodule(layer), "groups", 1) != 1
        if len(dims) == 1 and name == "weight" and not grouped and owners[id(network.get_parameter(tensor))] == 1:
            readers.append(_Reader(layer, tensor, dims.pop()))
    return readers


def _rows(layer: nn.Module, fed: Tensor, counted: Tensor | None, features: int | None = None) -> Tensor:
    """Return what `layer` is fed as rows [N, G]: some of the places of maps [B, G, ...] or sequences [B, T, G].

    Those places are the same whatever G is; `features` is their number, G unless stated. `counted` [B, T] tells which
    places of sequences are not padding.
    """
    convolves = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    rows = fed.detach().movedim(1, -1) if convolves else fed.detach()
    rows = rows.flatten(0, -2)
    if counted is not None and len(rows) == counted.numel():
        rows = rows[counted.flatten()]
    most = max(_ROWS, 4 * (features or rows.shape[1]))
    if len(rows) > most:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most].sort().values
        rows = rows.index_select(0, chosen.to(rows.device))
    return rows.float()


def _predicting(ours: Tensor, theirs: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """Return C [F, G] and c [F], float64, that predict `theirs` [N, F] from `ours` [N, G]: C s + c.

    `stay` [G] are the features of theirs that ours are what is left of. Rows of one sample are neighbours. What the
    regression changes is scaled by the factor in [0, 1] that predicts the last samples, which it has not seen, best.
    """
    mean, their_mean = ours.double().mean(0), theirs.double().mean(0)
    fed, wanted = ours.double() - mean, theirs.double() - their_mean
    lost = wanted.clone()
    lost[:, stay] -= fed
    seen = max(1, round(len(fed) * (1 - _HELD_OUT)))
    second = fed[:seen].T @ fed[:seen]
    ridge = seen * (RIDGE * fed.square().mean() + torch.finfo(torch.float32).tiny)
    second.diagonal().add_(ridge)
    change = torch.linalg.solve(second, fed[:seen].T @ lost[:seen]).T
    predicted = fed[seen:] @ change.T
    factor = (predicted * lost[seen:]).sum() / predicted.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    mixing = change * factor.clamp(0.0, 1.0)
    mixing[stay, torch.arange(len(stay), device=stay.device)] += 1.0
    return mixing, their_mean - mixing @ mean
