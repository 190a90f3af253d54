"""One block of a network replaced by a cut one, all others whole: fitted, briefly distilled, and what it then loses.

The block is called alone, on what it is fed inside the network, and learns what it gave there: first in closed form
(`kdnas.nn.reconstruction`), then by gradients of the squared error. All cut forms of a block train on the same batches
at once. What is lost is measured on samples kept aside.

Sources: blocks distilled on the teacher's own inputs and outputs, Li et al., "DNA" (CVPR 2020); the scores of a network
in which one block alone is replaced, Bercovich et al., "Puzzle" (2024).

Shapes: B samples, K outputs.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from kdnas.nn.cutting import Anatomy, outputs, part_of
from kdnas.nn.recalibration import recalibrate
from kdnas.nn.reconstruction import Reconstruction
from kdnas.nn.strided import thinned_first

LEARNING_RATE = 1e-3
HELD_OUT = 0.25
"""The share of the samples, the last ones, that losses are measured on."""
_BATCH = 64
_FITTED = 512
"""So many samples are enough for the closed form."""

Sizes = Mapping[str, int]
"""By the name of an axis of the block: how many of its units stay."""


@dataclass(frozen=True)
class BlockLoss:
    """What a network loses by one replaced block.

    `answers` is the divergence of its answers from those that are wanted: KL in nats, of single numbers the squared
    error in their variance. `local` is the mean squared error of the block's own output in its variance.
    """

    answers: float
    local: float


class _Call(nn.Module):
    """A block that is called as its network calls it: its `tensors`, one row a sample, change, all else stays."""

    def __init__(self, block: nn.Module, spec: pytree.TreeSpec, leaves: Sequence[Any], places: Sequence[int]):
        super().__init__()
        self.block = block
        self._spec, self._leaves, self._places = spec, list(leaves), tuple(places)

    def of(self, block: nn.Module) -> _Call:
        """Return the same call of another block."""
        return _Call(block, self._spec, self._leaves, self._places)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the first tensor that the block gives."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        arguments, named = pytree.tree_unflatten(leaves, self._spec)
        return _first(self.block(*arguments, **named))


@dataclass(frozen=True)
class _Fed:
    """What a block is fed inside its network, and gives there."""

    call: _Call
    tensors: tuple[Tensor, ...]
    """Each [B, ...]; the first is what flows from block to block."""
    given: Tensor

    def rows(self, places: Tensor | slice) -> tuple[Tensor, ...]:
        """Return what some samples are fed."""
        return tuple(tensor[places].clone() for tensor in self.tensors)


class BlockBench:
    """A network on some samples, whose blocks are replaced one at a time; it is left as it was.

    Args:
        student: Has `network` in it, takes `inputs`; in eval mode.
        network: The network whose blocks are cut.
        anatomy: What of it can be cut.
        inputs: Samples, each [B, ...].
        teacher: Its answers [.., K] to the held-out samples, the last `HELD_OUT` of them, are those that are wanted.

    Raises ValueError where there are too few samples.
    """

    def __init__(
        self, student: nn.Module, network: nn.Module, anatomy: Anatomy, inputs: tuple[Tensor, ...], teacher: nn.Module
    ):
        self._student, self._network, self._anatomy = student, network, anatomy
        self._inputs = inputs
        self._seen = held_from(len(inputs[0]))
        self._held = tuple(taken[self._seen :] for taken in inputs)
        self._wanted = answers(teacher, self._held)

    def whole(self) -> float:
        """Return the divergence of the network whose blocks are all whole."""
        return self._divergence(self._student)

    def without(self, block: str) -> BlockLoss:
        """Return what the network loses without a removable block."""
        fed = self._fed(block)
        depth = next(depth for depth in self._anatomy.depths if block in depth.blocks)
        others = [index for index, name in enumerate(depth.blocks) if name != block]
        cut = self._anatomy.cut(self._network, {depth.name: others})
        shortened = copy.deepcopy(self._student, {id(self._network): cut})
        return BlockLoss(self._divergence(shortened), _error(fed.tensors[0][self._seen :], fed.given[self._seen :]))

    def replaced(self, block: str, forms: Sequence[Sizes], *, epochs: int, seed: int) -> list[BlockLoss]:
        """Return what the network loses where `block` is cut to each of `forms`, fitted and trained for `epochs`.

        A form that training did not bring closer to the block on the held-out samples counts as it was fitted. The
        order of the batches is drawn by `seed`.
        """
        fed = self._fed(block)
        axes = part_of(self._anatomy, {name for sizes in forms for name in sizes})
        few = fed.rows(slice(min(_FITTED, self._seen)))
        reconstruction = Reconstruction(self._network, axes, fed.call, few, apart=_error)
        calls = []
        for sizes in forms:
            kept = axes.prefix(sizes)
            cut = axes.cut(self._network, kept)
            calls.append(fed.call.of(cut.get_submodule(block)).eval())
            if any(size < axes.sizes[name] for name, size in sizes.items()):
                reconstruction.mend(cut, kept, calls[-1])
        held, given = fed.rows(slice(self._seen, None)), fed.given[self._seen :]
        fitted = [_error(answers(call, held), given) for call in calls]
        if epochs:
            kept_as_fitted = [copy.deepcopy(call) for call in calls]
            self._train(calls, fed, epochs, seed)
            trained = [_error(answers(call, held), given) for call in calls]
            for place, (before, after) in enumerate(zip(fitted, trained, strict=True)):
                if not after < before:
                    calls[place] = kept_as_fitted[place]
        return [self._loss(block, call, _error(answers(call, held), given)) for call in calls]

    def _loss(self, block: str, call: _Call, local: float) -> BlockLoss:
        with _in_place(self._network, block, call.block):
            return BlockLoss(self._divergence(self._student), local)

    def _divergence(self, student: nn.Module) -> float:
        return divergence(answers(student, self._held), self._wanted)

    def _train(self, calls: Sequence[_Call], fed: _Fed, epochs: int, seed: int) -> None:
        """Train all `calls` on the same batches: their errors share no weights, so each learns as it would alone."""
        seen = self._seen
        scale = _variance(fed.given[:seen])
        batches = math.ceil(seen / _BATCH)
        weights = [p.requires_grad_(True) for call in calls for p in call.parameters() if p.is_floating_point()]
        if not weights:
            return
        optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=epochs * batches)
        generator = torch.Generator().manual_seed(seed)
        norms = [part for call in calls for part in call.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.train()  # what drops at random stays still: the block learns a fixed answer
        with torch.enable_grad():
            for _ in range(epochs):
                order = torch.randperm(seen, generator=generator).to(fed.given.device)
                for places in order.split(_BATCH):
                    if len(places) == 1 and norms:
                        continue  # a batch norm has no statistics of one sample
                    wanted = fed.given[places]
                    with contextlib.ExitStack() as stack:
                        for call in calls:
                            stack.enter_context(thinned_first(call))
                        errors = [(call(*fed.rows(places)) - wanted).square().mean() / scale for call in calls]
                    optimizer.zero_grad(set_to_none=True)
                    torch.stack(errors).sum().backward()
                    optimizer.step()
                    schedule.step()
        every = [fed.rows(slice(start, min(start + _BATCH * 4, seen))) for start in range(0, seen, _BATCH * 4)]
        for call in calls:
            call.eval()
            recalibrate(call, every)

    def _fed(self, block: str) -> _Fed:
        """Return what `block` is fed on all samples, and gives; rows of arguments that are no sample's stay as is."""
        calls: list[tuple[Any, Any, Tensor]] = []

        def before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            taken = pytree.tree_map_only(Tensor, torch.clone, (arguments, named))  # some blocks change what they take
            calls.append((*pytree.tree_flatten(taken), torch.empty(0)))

        def after(module: nn.Module, arguments: tuple[Any, ...], given: Any) -> None:
            calls[-1] = (*calls[-1][:2], _first(given).clone())

        module = self._network.get_submodule(block)
        handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
        sizes = []
        try:
            for batch in _batches(self._inputs):
                outputs(self._student, batch)
                sizes.append(len(batch[0]))
        finally:
            for handle in handles:
                handle.remove()
        if len(calls) != len(sizes):
            raise ValueError(f"{block} runs {len(calls) / len(sizes):g} times a pass, so it is not a block of its own")
        leaves, spec, _ = calls[0]
        places = [
            place
            for place, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor)
            and leaf.ndim
            and all(call[0][place].shape[:1] == (size,) for call, size in zip(calls, sizes, strict=True))
        ]
        if not places:
            raise ValueError(f"{block} is fed nothing that has a row for each sample")
        tensors = tuple(torch.cat([call[0][place] for call in calls]) for place in places)
        return _Fed(_Call(module, spec, leaves, places), tensors, torch.cat([call[2] for call in calls]))


def held_from(samples: int) -> int:
    """Return from which of so many samples on they are held out. Raises ValueError where they are too few."""
    seen = round(samples * (1 - HELD_OUT))
    if seen < 2 or samples - seen < 2:
        raise ValueError(f"{samples} samples are too few to fit blocks to some and measure them on others")
    return seen


def answers(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return what `network` answers to `inputs`, each [B, ...], in eval mode, float32: [.., K]."""
    return torch.cat([outputs(network, batch) for batch in _batches(inputs)])


def divergence(given: Tensor, wanted: Tensor) -> float:
    """Return how far answers [.., K] are from `wanted` ones: KL of their softmax in nats, of single numbers (K = 1)
    the squared error in their variance.
    """
    if wanted.shape[-1] == 1:
        return float((given - wanted).square().mean() / _variance(wanted.reshape(-1, 1)))
    predicted, right = F.log_softmax(given.flatten(0, -2), -1), F.log_softmax(wanted.flatten(0, -2), -1)
    return float(F.kl_div(predicted, right, reduction="batchmean", log_target=True))


def _error(given: Tensor, wanted: Tensor) -> float:
    return float((given.float() - wanted.float()).square().mean() / _variance(wanted))


def _variance(values: Tensor) -> Tensor:
    """Return the mean variance of the features of `values` [B, ...] over the samples."""
    return (values.float() - values.float().mean(0)).square().mean().clamp_min(1e-12)


def _batches(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Yield `inputs` in batches of two sizes or more, which separates what has a row for each sample from what has not.

    The first has one sample less than the others.
    """
    samples, size = len(inputs[0]), min(4 * _BATCH, max(len(inputs[0]) // 2, 1))
    ends = [0, max(size - 1, 1), *range(max(size - 1, 1) + size, samples, size), samples]
    for start, end in itertools.pairwise(ends):
        if end > start:
            yield tuple(taken[start:end] for taken in inputs)


def _first(given: Any) -> Tensor:
    """Return the first tensor of what a block gives."""
    while isinstance(given, tuple | list):
        given = given[0]
    assert isinstance(given, Tensor)
    return given


@contextmanager
def _in_place(network: nn.Module, name: str, block: nn.Module) -> Iterator[None]:
    """Have `block` stand in `network` under `name` within."""
    own = network.get_submodule(name)
    network.set_submodule(name, block)
    try:
        yield
    finally:
        network.set_submodule(name, own)
