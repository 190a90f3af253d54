"""Which units and blocks of a network matter most: one calibration pass, from which every student is cut as a prefix.

Sources: mean activations over the sequence, root of squares over the batch (Muralidharan et al., "Minitron", NeurIPS
2024); first-order Taylor expansion (Molchanov et al., CVPR 2019); L1 of the weights that read a channel (Cai et al.,
"Once-for-All", ICLR 2020). Of blocks: one after the other goes whose loss changes the answers least in what the earlier
ones have left (Song et al., "SLEB", ICML 2024, there by perplexity); or a block's influence, one minus the cosine of
its input and output, all of them being there (Men et al., "ShortGPT", 2024).

Shapes: B samples, F features of a layer's input, U units of an axis, K classes.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.nn.cutting import Anatomy, Axis, Depth, Example, Tie, in_order, named_tensors, outputs
from kdnas.nn.strided import thinned_first
from kdnas.nn.taps import text_mask

Method = Literal["activation", "taylor", "l1"]
DepthMethod = Literal["divergence", "influence", "even"]
Batch = tuple[Example, Tensor]
"""Inputs [B, ...] as the network takes them, and labels [B]."""
_AT_ONCE = 8
"""Samples whose answers are compared at once: of a language model each has thousands of numbers a token."""
_GOING = 8
"""Of so many blocks that are left one goes at once: of 30 the first three."""


@dataclass(frozen=True)
class Ranking:
    """Scores of every unit and every block, by the name of its axis or depth; larger is to be kept longer."""

    scores: dict[str, tuple[float, ...]]

    @property
    def orders(self) -> dict[str, tuple[int, ...]]:
        """By name: units or blocks, the most important first; of equals the earlier."""
        return {
            name: tuple(sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit)))
            for name, scores in self.scores.items()
        }


def rank(
    network: nn.Module,
    anatomy: Anatomy,
    batches: Iterable[Batch],
    *,
    method: Method = "activation",
    depth: DepthMethod = "divergence",
    compared: int = 32,
    through: nn.Module | None = None,
    mask: int | None = None,
) -> Ranking:
    """Return how much every unit and block of `network`, in eval mode, matters on `batches`.

    `batches` go through the module `through`, which has `network` in it and gives logits; None: `network` itself. `l1`
    looks at no data, and blocks are then ranked as the anatomy does, as they are with `even`. Some 512 samples are
    enough, the first `compared` of them for `divergence`, which takes `passes` runs of the network. `mask` is which of
    the inputs is the attention mask: padding does not count. None: all counts.
    """
    scores: dict[str, Tensor] = {}
    batches = list(batches)
    if method == "l1":
        scores = {axis.name: _l1(network, axis) for axis in anatomy.axes}
    else:
        meters = _Activations(network, anatomy) if method == "activation" else _Taylor(network, anatomy)
        influence = _Influence(network, anatomy.depths if depth == "influence" else ())
        with meters.watching(), influence.watching():
            for inputs, labels in batches:
                meters.mask = influence.mask = text_mask(in_order(inputs), mask)
                meters.run(network if through is None else through, inputs, labels)
        scores = meters.scores() | influence.scores()
        if depth == "divergence" and batches:
            scores |= _Divergence(network, anatomy, batches, compared, through or network).scores()
    return Ranking({name: tuple(float(value) for value in values) for name, values in scores.items()})


def ranked(anatomy: Anatomy, ranking: Ranking) -> Anatomy:
    """Return `anatomy` with units and blocks ranked: every size is a prefix of the same order."""
    orders = ranking.orders
    axes = tuple(dataclasses.replace(axis, order=orders.get(axis.name, axis.order)) for axis in anatomy.axes)
    depths = tuple(dataclasses.replace(depth, order=orders.get(depth.name, depth.order)) for depth in anatomy.depths)
    return dataclasses.replace(anatomy, axes=axes, depths=depths)


def _l1(network: nn.Module, axis: Axis) -> Tensor:
    """Return the sum of absolute weights that read each unit [U]."""
    total = torch.zeros(axis.size)
    for tie in _readers(axis):
        weight = network.get_parameter(tie.tensor).detach().abs()
        others = [dim for dim in range(weight.ndim) if dim != tie.dim]
        total += weight.sum(dim=others).cpu()[tie.places].sum(dim=1)
    return total


def _readers(axis: Axis) -> list[Tie]:
    return [tie for tie in axis.ties if tie.reads]


def _mean_of_places(values: Tensor, mask: Tensor | None, dims: Sequence[int]) -> Tensor:
    """Return the mean of `values` [B, ...] over `dims`, of tokens [B, T, ...] over those that `mask` [B, T] counts."""
    if mask is None or list(dims) != [1] or values.shape[:2] != mask.shape:
        return values.mean(dim=list(dims)) if dims else values
    counts = mask.to(values.dtype).view(*mask.shape, *([1] * (values.ndim - 2)))
    return (values * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1.0)


class _Activations:
    """Sizes of what flows into the layers that read an axis."""

    mask: Tensor | None = None
    """Of the batch that runs: which tokens are text [B, T]."""

    def __init__(self, network: nn.Module, anatomy: Anatomy):
        self._network = network
        self._anatomy = anatomy
        self._squares: dict[str, Tensor] = {}
        """By layer: squares of the mean absolute input, summed over the samples, [F]."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, forward passes are measured."""
        layers = {tie.tensor.rpartition(".")[0] for axis in self._anatomy.axes for tie in _readers(axis)}
        handles = [self._network.get_submodule(layer).register_forward_pre_hook(self._meter(layer)) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _meter(self, layer: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def meter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            fed = inputs[0].detach().float().abs()
            feature = 1 if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else fed.ndim - 1
            others = [dim for dim in range(1, fed.ndim) if dim != feature]
            means = _mean_of_places(fed, self.mask, others)
            squares = means.square().sum(dim=0).cpu()
            self._squares[layer] = self._squares.get(layer, torch.zeros_like(squares)) + squares

        return meter

    def run(self, through: nn.Module, inputs: Example, labels: Tensor) -> None:
        """Measure one batch."""
        outputs(through, inputs)

    def scores(self) -> dict[str, Tensor]:
        """Return the scores of every axis [U]."""
        result = {}
        for axis in self._anatomy.axes:
            total = torch.zeros(axis.size)
            for tie in _readers(axis):
                layer = tie.tensor.rpartition(".")[0]
                squares = self._squares.get(layer)
                if squares is not None:
                    places = _input_places(tie, self._network.get_submodule(layer), len(squares))
                    total += squares[places].sum(dim=1).sqrt()
            result[axis.name] = total
        return result


def _input_places(tie: Tie, layer: nn.Module, features: int) -> Tensor:
    """Return the features of the layer's input that each unit owns: a grouped weight counts within a group."""
    within = layer.weight.shape[tie.dim]  # type: ignore[index]
    starts = range(0, features, int(within))
    return torch.cat([tie.places + start for start in starts], dim=1)


class _Taylor:
    """What the loss would change by if a unit were gone, to first order: weight times gradient."""

    mask: Tensor | None = None
    """Of the batch that runs: padding has no gradient, so it is not read."""

    def __init__(self, network: nn.Module, anatomy: Anatomy):
        self._network = network
        self._anatomy = anatomy
        self._sums = {axis.name: torch.zeros(axis.size) for axis in anatomy.axes}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, the weights that are looked at have gradients."""
        before = {name: parameter.requires_grad for name, parameter in self._network.named_parameters()}
        self._network.requires_grad_(True)
        try:
            yield
        finally:
            for name, parameter in self._network.named_parameters():
                parameter.requires_grad_(before[name])
                parameter.grad = None

    def run(self, through: nn.Module, inputs: Example, labels: Tensor) -> None:
        """Measure one batch against its labels."""
        self._network.zero_grad(set_to_none=True)
        with torch.enable_grad(), thinned_first(self._network):
            _loss(outputs(through, inputs, grad=True), labels).backward()
        for axis in self._anatomy.axes:
            for tie in _readers(axis):
                weight = self._network.get_parameter(tie.tensor)
                if weight.grad is not None:
                    product = (weight.detach() * weight.grad).float()
                    others = [dim for dim in range(product.ndim) if dim != tie.dim]
                    self._sums[axis.name] += product.sum(dim=others).cpu()[tie.places].sum(dim=1).square()

    def scores(self) -> dict[str, Tensor]:
        """Return the scores of every axis [U]."""
        return self._sums


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of classes [B] or of the tokens [B, T] that follow, the squared error of numbers [B]."""
    if labels.is_floating_point():
        return F.mse_loss(logits[:, 0], labels)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def passes(anatomy: Anatomy) -> int:
    """Return how often the network, or most of it, runs to rank its blocks by divergence."""
    return 1 + sum(left for depth in anatomy.depths for left, _ in _rounds(len(depth.blocks)))


def _rounds(blocks: int) -> Iterator[tuple[int, int]]:
    """Yield how many blocks are left before a round, and how many go in it, until one is left."""
    while blocks > 1:
        going = max(blocks // _GOING, 1)
        yield blocks, going
        blocks -= going


class _Divergence:
    """Which blocks go first, stage by stage, the others being whole.

    Scores are places: the first to go has 0. What fails without a block, or gives no finite numbers, keeps it longest.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy, batches: Sequence[Batch], count: int, through: nn.Module):
        self._network = network
        self._anatomy = anatomy
        self._through = through
        self._inputs: list[Example] = []
        for inputs, _ in batches:
            parts = zip(*(taken[:count].split(_AT_ONCE) for taken in in_order(inputs)), strict=True)
            self._inputs += [part if len(part) > 1 else part[0] for part in parts] if count > 0 else []
            count -= len(in_order(inputs)[0])
        self._answers = [outputs(through, inputs) for inputs in self._inputs]

    def scores(self) -> dict[str, Tensor]:
        """Return the places of every depth's blocks."""
        return {depth.name: self._places(depth) for depth in self._anatomy.depths}

    def _places(self, depth: Depth) -> Tensor:
        left = list(range(len(depth.blocks)))
        gone: list[int] = []
        for _, going in _rounds(len(left)):
            lost = {block: self._apart({*gone, block}, depth) for block in left}
            gone += sorted(left, key=lambda block: lost[block])[:going]
            left = [block for block in left if block not in gone]
        places = torch.zeros(len(depth.blocks))
        places[[*gone, *left]] = torch.arange(len(depth.blocks), dtype=torch.float32)
        return places

    def _apart(self, gone: Collection[int], depth: Depth) -> float:
        """Return how far the answers are from the whole network's without the blocks `gone`, a mean over them."""
        try:
            part = self._anatomy.without(self._network, gone, depth)
            shared = {id(tensor): tensor for _, tensor in named_tensors(self._through)}
            through = copy.deepcopy(self._through, {**shared, id(self._network): part})
            found = [
                difference(outputs(through, inputs), answers)
                for inputs, answers in zip(self._inputs, self._answers, strict=True)
            ]
        except Exception:  # the teacher's own code runs, which may raise anything
            return math.inf
        mean = float(torch.cat(found).mean())
        return mean if math.isfinite(mean) else math.inf


def difference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return KL(theirs || ours) of every row of logits [..., K], in nats; of numbers the squared error."""
    if theirs.shape[-1] == 1:
        return (ours - theirs).square().flatten()
    wanted = theirs.log_softmax(dim=-1)
    return (wanted.exp() * (wanted - ours.log_softmax(dim=-1))).sum(dim=-1).flatten()


class _Influence:
    """How far blocks turn what flows through them."""

    mask: Tensor | None = None
    """Of the batch that runs: which tokens are text [B, T]."""

    def __init__(self, network: nn.Module, depths: Sequence[Depth]):
        self._network = network
        self._depths = depths
        self._sums: dict[str, float] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, forward passes are measured."""
        handles = [
            self._network.get_submodule(block).register_forward_hook(self._meter(block), with_kwargs=True)
            for depth in self._depths
            for block in depth.blocks
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _meter(self, block: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def meter(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            before = (inputs[0] if inputs else next(iter(named.values()))).detach().float()
            after = (output[0] if isinstance(output, tuple) else output).detach().float()
            maps = before.ndim == 4 and any(isinstance(part, nn.Conv2d) for part in module.modules())
            feature = 1 if maps else before.ndim - 1  # windows of tokens have four dimensions as well
            turned = 1.0 - F.cosine_similarity(before, after, dim=feature, eps=1e-12)
            means = _mean_of_places(turned.flatten(1), self.mask, [1])
            self._sums[block] = self._sums.get(block, 0.0) + float(means.sum())

        return meter

    def scores(self) -> dict[str, Tensor]:
        """Return the scores of every depth's blocks."""
        return {
            depth.name: torch.tensor([self._sums.get(block, 0.0) for block in depth.blocks]) for depth in self._depths
        }
