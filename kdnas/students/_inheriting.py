"""Weights inherited from a teacher of the student's own family.

The student's stages are matched with the teacher's (`kdnas.nn.matching`). Of a stage's blocks the first, which may
change the shape, is kept, and of the others those that change their input most. Of each channel axis the most important
channels are kept, in their order: those whose following weights have the largest L1 norm. Where parameter-free
shortcuts join stages of both networks, a channel has one place in all of them, and channels that a narrower stage of
the teacher cuts off stand where the student's cuts them off. Kernels are cut from the centre. What the teacher has no
counterpart for (other kinds of blocks, more blocks, more channels) stays as it was.

Shapes: B batch, C channels, H and W height and width.

Sources: L1 norms, Li et al., "Pruning filters for efficient ConvNets" (ICLR 2017); block influence, Men et al.,
"ShortGPT" (ACL Findings 2025), there for transformers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.core.arch import Arch
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem
from kdnas.nn.elastic import ElasticSupernet, Layout, Supernet, Unfilled
from kdnas.nn.matching import match_stages
from kdnas.nn.recalibration import recalibrate
from kdnas.nn.taps import output_shapes, stage_names
from kdnas.students import StudentFamily

_BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\.(.+)")
_ELSEWHERE = re.compile(r"(exits|stream)\.(\d+)(.*)")
_MISSING = -1


@dataclass(frozen=True)
class Inheritance:
    """What a student got from its teacher.

    `share` is the fraction of its parameters that hold teacher weights; `stages` pairs (student's, teacher's) stages
    from 0; `blocks` lists for each pair the teacher's blocks that were kept, `influence` what all of them change: 1 -
    the cosine of a block's input and output, in [0, 2], and 1 where the shape changes.
    """

    share: float
    stages: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, ...], ...]
    influence: tuple[tuple[float, ...], ...]


Influence = Sequence[Sequence[float]]
"""By stage and block of a network: what `block_influence` returns."""


def inherit(
    family: StudentFamily,
    student: nn.Module,
    arch: Arch,
    teacher: nn.Module,
    teacher_arch: Arch,
    images: Tensor,
    influence: Influence | None = None,
    *,
    sort: bool = False,
) -> Inheritance:
    """Copy into `student` what `teacher` has for it, and return what that was.

    Args:
        family: The family of both.
        student: The module of `arch`. Unless that is the teacher's, its batch-norm statistics are estimated anew on
            `images`.
        arch: The student's architecture.
        teacher: The module of `teacher_arch`, taking the same normalised images; stays as it is.
        teacher_arch: The teacher's architecture, of the same family.
        images: Normalised training images [B, C, H, W], some hundreds, on the networks' device.
        influence: That of the teacher's blocks on `images`, where it is known; None: it is found out.
        sort: Whether the most important channels get the first places; else all stay in the teacher's order.

    A student of the teacher's own arch becomes its copy, statistics included. Raises ConfigError where the two are not
    of one family, or a module is not that of its arch.
    """
    if teacher_arch.family != arch.family:
        what = f"is a {teacher_arch.family}, the student a {arch.family}: weights are inherited within a family"
        raise ConfigError(Problem("teacher", what))
    for name, network, own in (("student", student, arch), ("teacher", teacher, teacher_arch)):
        _check(name, network, own, family)
    ours = _shared(family, arch).layout
    source = _shared(family, teacher_arch).to(images.device)
    source.adopt(teacher_arch, teacher)

    shapes = [output_shapes(net, *stage_names(net), images[:2]).stages for net in (student, teacher)]
    stages = match_stages(*shapes)
    influence = influence or block_influence(teacher, images)
    blocks = []
    for s, t in stages:
        others = sorted(range(1, len(influence[t])), key=lambda block: -influence[t][block])
        blocks.append((0, *sorted(others[: len(student.stages[s]) - 1])))  # type: ignore[index]
    there = _Counterparts(dict(stages), dict(zip(dict(stages), blocks, strict=True)), len(shapes[0]), len(shapes[1]))
    kept = _kept_channels(ours, source, there, sort=sort)
    copied = _copy(student, arch, ours, source, there, kept)
    if arch != teacher_arch:
        recalibrate(student, ((part,) for part in images.split(256)))
    total = sum(parameter.numel() for parameter in student.parameters())
    return Inheritance(copied / total, stages, tuple(blocks), tuple(tuple(influence[t]) for _, t in stages))


def inherit_supernet(
    family: StudentFamily, supernet: Supernet, largest: Arch, teacher: nn.Module, teacher_arch: Arch, images: Tensor
) -> Inheritance:
    """Copy into the `largest` subnet of `supernet` what `teacher` has for it, as `inherit` does, and return it.

    The most important channels come first, where narrow subnets have theirs. Shared tensors that the largest subnet
    does not use stay as they are. Raises ConfigError.
    """
    student = supernet.subnet(largest)
    report = inherit(family, student, largest, teacher, teacher_arch, images, sort=True)
    supernet.adopt(largest, student)
    return report


@torch.no_grad()
def block_influence(network: nn.Module, images: Tensor) -> list[list[float]]:
    """Return how much each block of each stage changes what enters it, for normalised `images` [B, C, H, W].

    It is 1 - the mean cosine of a block's input and output, in [0, 2]; 1 where the shape changes. `network` is run in
    eval mode and left as it was.
    """
    influence: list[list[float]] = [[] for _ in network.stages]  # type: ignore[union-attr]

    def observe(stage: int) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(block: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
            x = inputs[0]
            cosine = float(F.cosine_similarity(x.flatten(1), y.flatten(1)).mean()) if x.shape == y.shape else 0.0
            influence[stage].append(1.0 - cosine)

        return hook

    modes = [(part, part.training) for part in network.modules()]
    blocks = [(index, block) for index, stage in enumerate(network.stages) for block in stage]  # type: ignore
    handles = [block.register_forward_hook(observe(index)) for index, block in blocks]
    try:
        network.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
        for part, training in modes:
            part.training = training
    return influence


@dataclass(frozen=True)
class _Counterparts:
    """Where the student's stages and blocks are in the teacher."""

    stages: Mapping[int, int]
    blocks: Mapping[int, Sequence[int]]
    student_stages: int
    teacher_stages: int

    def __call__(self, name: str) -> str | None:
        """Return the teacher's name of one of the student's shared tensors or axes, None where it has none."""
        if match := _BLOCK.fullmatch(name):
            stage, block = int(match[1]), int(match[2])
            if block >= len(self.blocks.get(stage, ())):
                return None
            return f"stages.{self.stages[stage]}.{self.blocks[stage][block]}.{match[3]}"
        if match := _ELSEWHERE.fullmatch(name):
            kind, place, rest = match[1], int(match[2]), match[3]
            if kind == "exits":
                same_end = self.stages.get(self.student_stages - 1) == self.teacher_stages - 1
                return f"exits.{self.teacher_stages}{rest}" if same_end else None
            if place == 0:
                return name
            return f"stream.{self.stages[place - 1] + 1}{rest}" if place - 1 in self.stages else None
        return name


def _kept_channels(ours: Layout, source: ElasticSupernet, there: _Counterparts, *, sort: bool) -> dict[str, Tensor]:
    """Return for each of the student's channel axes the teacher's channels in its places, -1 where there is none.

    Places are filled in the teacher's own order, with `sort` from the most important channel on.
    """
    sizes = {axis: size for tensor in ours.tensors.values() for axis, size in zip(tensor.axes, tensor.shape)}  # noqa: B905
    scores = source.importance()
    kept: dict[str, Tensor] = {}
    known = {axis: theirs for axis in sizes if axis is not None and (theirs := there(axis)) in scores}
    chains = [list(_met(chain, known, source.layout)) for chain in ours.aligned]
    alone = [[axis] for axis in known if not any(axis in group for groups in chains for group in groups)]
    for group in itertools.chain(*chains, alone):
        kept |= _placed({axis: sizes[axis] for axis in group}, [scores[known[axis]] for axis in group], sort=sort)
    return kept


def _met(chain: Sequence[str], known: Mapping[str, str], teacher: Layout) -> Iterator[list[str]]:
    """Yield the axes of the student's `chain` in groups that meet in shortcuts of the teacher, too."""
    group: list[str] = []
    for axis in chain:
        pair = {known[group[-1]], known[axis]} if group and axis in known else set()
        if group and not (pair and any(pair <= set(other) for other in teacher.aligned)):
            yield group
            group = []
        if axis in known:
            group.append(axis)
    if group:
        yield group


def _placed(sizes: Mapping[str, int], scores: Sequence[Tensor], *, sort: bool) -> dict[str, Tensor]:
    """Return the channels in the places of axes of `sizes` that meet in shortcuts; `scores` are those of the teacher's.

    A place is one channel on all axes. The places up to where one of the student's axes ends, and from there to where
    the next does, get channels that end where the teacher's counterpart does: so a student of the teacher's sizes has
    each channel in its place. Where these are too few, others follow that are on all of the axes, then on some.
    """
    ends, teachers = list(sizes.values()), [len(score) for score in scores]
    device = scores[0].device
    free = torch.ones(max(teachers), dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    for low, high in itertools.pairwise(sorted({0, *ends})):
        here = [place for place, end in enumerate(ends) if end >= high]
        found = torch.zeros(len(free), device=device)
        covered, elsewhere = torch.zeros_like(free, dtype=torch.int64), torch.zeros_like(free)
        for place, score in enumerate(scores):
            if place in here:
                found[: len(score)] += score
                covered[: len(score)] += 1
            else:
                elsewhere[: len(score)] = True
        # By what counts least first: stable sorts keep it where what counts more is equal.
        order = found.argsort(descending=True, stable=True)
        for rank in (~elsewhere, covered):
            order = order[rank[order].to(torch.int64).argsort(descending=True, stable=True)]
        best = order[(free & (covered > 0))[order]][: high - low]
        free[best] = False
        best = best if sort else best.sort().values
        chosen.append(F.pad(best, (0, high - low - len(best)), value=_MISSING))
    places = torch.cat(chosen)
    return {
        axis: torch.where(places[:end] < len(score), places[:end], _MISSING)
        for (axis, end), score in zip(sizes.items(), scores, strict=True)
    }


@torch.no_grad()
def _copy(
    student: nn.Module,
    arch: Arch,
    ours: Layout,
    source: ElasticSupernet,
    there: _Counterparts,
    kept: Mapping[str, Tensor],
) -> int:
    """Copy the kept channels of every tensor that both have, and return the number of parameters that were set."""
    state, copied = student.state_dict(), 0
    parameters = {name for name, _ in student.named_parameters()}
    for key, name in ours.shared_names(arch, list(state)).items():
        theirs, target = there(name), state[key]
        if theirs is None or theirs not in source.layout.tensors or not target.ndim:
            continue
        value = source.shared(theirs)
        if target.ndim == 4:
            value = _with_side(value, target.shape[3])
        places = []
        for dimension, axis in enumerate(ours.tensors[name].axes):
            every = torch.arange(target.shape[dimension], device=target.device)
            taken = every if axis is None else kept.get(axis, every)
            there_is = (taken != _MISSING) & (taken < value.shape[dimension])
            places.append(every[there_is])
            value = value.index_select(dimension, taken[there_is])
        grid = tuple(place.view(-1, *[1] * (len(places) - 1 - i)) for i, place in enumerate(places))
        target[grid] = value
        copied += value.numel() if key in parameters else 0
    return copied


def _with_side(kernel: Tensor, side: int) -> Tensor:
    """Return `kernel` [C', C, H, W] cut to `side` around its centre, or framed with zeros."""
    margin = (side - kernel.shape[3]) // 2
    return F.pad(kernel, (margin, margin, margin, margin))


def _shared(family: StudentFamily, arch: Arch) -> ElasticSupernet:
    """Return a supernet of `arch` alone."""
    supernet = family.supernet(SearchSpace("alone", arch.family, (), fixed=arch.choices))
    assert isinstance(supernet, ElasticSupernet)
    return supernet


def _check(name: str, network: nn.Module, arch: Arch, family: StudentFamily) -> None:
    with Unfilled():
        expected = family.build(arch).state_dict()
    own = network.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in expected.items()}:
        raise ConfigError(Problem(name, f"is not the {arch.family} network of arch {arch.arch_id}"))
