"""How staged networks share weights in a supernet: which tensor of a student is a piece of which shared one.

Stage i and block b of an arch share the tensors of every other arch's stage i and block b. Branches of different kinds
(a plain block and a bottleneck, with and without expansion) have tensors of their own, named by the part that a
convolution plays; so have classifiers that read different features: after another stage, with and without a head.
"""

from __future__ import annotations

import functools
import itertools
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem
from kdnas.nn.blocks import ConvNorm
from kdnas.nn.elastic import ElasticSupernet, SharedTensor, Supernet, Unfilled
from kdnas.students._inheriting import Influence, block_influence, inherit, inherit_supernet
from kdnas.students._kin import KinFamily
from kdnas.students._staged import BlockPlan, Stage, StagedFamily, default_stride

_DEPTH = re.compile(r"stage(\d+)\.depth")
_IN_BRANCH = re.compile(r"branch\.(\d+)\.(.+)")


class ElasticFamily(KinFamily, StagedFamily):
    """A family of staged networks that can share weights. Members fill in how their blocks do."""

    axes: ClassVar[Mapping[str, tuple[str, str | None]]]
    """By part of a block: the channel axes its weights write and read. "in" and "out" are the stages' own channels."""

    @staticmethod
    @abstractmethod
    def parts(plan: Any) -> tuple[str, ...]:
        """Return the part that each entry of the block's branch plays; blocks share the tensors of equal parts."""

    @staticmethod
    @abstractmethod
    def shortcut(plan: Any) -> Literal["identity", "projection", "none"]:
        """Return the shortcut around the block's branch."""

    def supernet(self, space: SearchSpace) -> ElasticSupernet:
        """Return a supernet that holds every network of `space`, freshly initialised from torch's global generator.

        Raises ConfigError where some have their teacher's classifier.
        """
        if why := self.only_random(space):
            raise ConfigError(Problem("space.projected", why, "0"))
        return ElasticSupernet(StagedLayout(self, space))

    def inherit(self, arch: Arch) -> nn.Module:
        """Return the student with what a teacher of this family has for it. Raises ConfigError."""
        teacher, own = self._known_ancestor()
        images = self._normalised_samples(teacher)
        student = self.build(arch).to(images.device)
        inherit(self, student, arch, teacher.network, own, images, self._influence)
        return student

    @functools.cached_property
    def _influence(self) -> Influence:
        """How much the ancestor's blocks change: the same for every student."""
        teacher, _ = self._known_ancestor()
        return block_influence(teacher.network, self._normalised_samples(teacher))

    def inherit_supernet(self, supernet: Supernet, largest: Arch, inputs: tuple[Tensor, ...]) -> float:
        """Give the `largest` network of `supernet` what a teacher of this family has for it, and return its share."""
        (images,) = inputs
        teacher, own = self._known_ancestor()
        normalised = (images - teacher.mean) / teacher.std
        return inherit_supernet(self, supernet, largest, teacher.network, own, normalised).share


class Slot(NamedTuple):
    """A place in the row of stages: the stages of the space that can stand there, without their depth 0."""

    widths: tuple[int, ...]
    depth: int
    stages: tuple[Stage, ...]
    """One for every combination of extreme settings, at depth 1 or 2."""
    between: tuple[Stage, ...]
    """The same for the other widths: the widest block that has a convolution in its shortcut may be one of these."""
    optional: bool
    """Whether networks can end before it."""


class StagedLayout:
    """The shared tensors of the networks of `space`, which all are of `family`."""

    def __init__(self, family: ElasticFamily, space: SearchSpace):
        self._family = family
        self.tensors: dict[str, SharedTensor] = {}
        self.aligned: list[list[str]] = [[_stream(0)]]
        domains: dict[str, tuple[Scalar, ...]] = {name: (value,) for name, value in space.fixed.items()}
        domains |= {choice.name: choice.values for choice in space.choices}
        stems = _numbers(domains["stem_width"])
        stem = ConvNorm(family.task.image_shape[0], max(stems), 3)
        self._add("stem", _shapes(stem), (_stream(0), None))
        widths, slots = stems, list(_slots(family, domains))
        for place, slot in enumerate(slots, 1):
            self._add_stage(place, widths, slot)
            widths = slot.widths
            if place == len(slots) or slots[place].optional:
                self._add_exit(place, max(widths), _numbers(domains.get("head_width", (0,))))

    def build(self, arch: Arch) -> nn.Module:
        """Return the family's module for `arch`."""
        return self._family.build(arch)

    def shared_names(self, arch: Arch, keys: Sequence[str]) -> dict[str, str]:
        """Return the shared tensor's name for each of the state-dict `keys` of the module of `arch`."""
        plan = self._family.plan(arch)
        leaving = f"exits.{len(plan.stages)}"
        ending = {"head": f"{leaving}.head", "classifier": f"{leaving}.{'headed' if plan.head_width else 'pooled'}"}
        names = {}
        for key in keys:
            first, _, rest = key.partition(".")
            if first == "stages":
                stage, block, inside = rest.split(".", 2)
                part = _part(self._family, plan.stages[int(stage)][int(block)], inside)
                names[key] = f"stages.{stage}.{block}.{part}"
            else:
                names[key] = f"{ending.get(first, first)}.{rest}"
        return names

    def _add_stage(self, place: int, incoming: tuple[int, ...], slot: Slot) -> None:
        """Add the blocks of a stage. An equal width on both sides is tried, since it decides which shortcuts exist."""
        before, here = _stream(place - 1), _stream(place)
        equal = [width for width in slot.widths if width in incoming][:1]
        meets = False
        for stage, channels in itertools.product(slot.stages, dict.fromkeys([*_extremes(incoming), *equal])):
            first, *others = self._family.blocks(channels, stage)
            self._add_block(f"stages.{place - 1}.0", first, before, here)
            meets |= self._family.shortcut(first) == "identity"
            for block in range(1, slot.depth if others else 0):
                self._add_block(f"stages.{place - 1}.{block}", others[0], here, here)
        for stage, channels in itertools.product((*slot.stages, *slot.between), incoming):
            self._add_block(f"stages.{place - 1}.0", self._family.blocks(channels, stage)[0], before, here)
        if meets:
            self.aligned[-1].append(here)
        else:
            self.aligned.append([here])

    def _add_block(self, prefix: str, plan: BlockPlan, reads: str, writes: str) -> None:
        ends = {"in": reads, "out": writes, None: None}
        for key, shape in _block_shapes(type(self._family), plan).items():
            name = _part(self._family, plan, key)
            layer = next(part for part in self._family.axes if name.startswith(f"{part}."))
            axes = tuple(ends.get(axis, f"{prefix}.{axis}") for axis in self._family.axes[layer])
            self._merge(f"{prefix}.{name}", shape, axes)

    def _add_exit(self, place: int, width: int, heads: tuple[int, ...]) -> None:
        prefix, classes = f"exits.{place}", self._family.task.outputs
        if 0 in heads:
            self._add(f"{prefix}.pooled", _shapes(nn.Linear(width, classes)), (None, _stream(place)))
        if max(heads):
            inner = f"{prefix}.head"
            self._add(inner, _shapes(ConvNorm(width, max(heads), 1)), (inner, _stream(place)))
            self._add(f"{prefix}.headed", _shapes(nn.Linear(max(heads), classes)), (None, inner))

    def _add(self, prefix: str, shapes: Mapping[str, tuple[int, ...]], axes: tuple[str | None, ...]) -> None:
        for key, shape in shapes.items():
            self._merge(f"{prefix}.{key}", shape, axes)

    def _merge(self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> None:
        """Make the shared tensor `name` large enough for a piece of `shape`."""
        side = shape[3] if len(shape) == 4 else 0
        known = self.tensors.get(name)
        if known is not None:
            shape = tuple(max(pair) for pair in zip(known.shape, shape, strict=True))
            side = min(known.side, side)
        self.tensors[name] = SharedTensor(shape, axes[: min(2, len(shape))], side)


def _slots(family: ElasticFamily, domains: Mapping[str, tuple[Scalar, ...]]) -> Iterator[Slot]:
    """Yield what can stand at each place of a canonical arch, where stages that are left out are not counted."""
    indices = sorted({int(match[1]) for name in domains if (match := _DEPTH.fullmatch(name))})
    optional = [0 in domains[f"stage{index}.depth"] for index in indices]
    for place in range(1, len(indices) + 1):
        # Stage j stands at place p when j - p of the stages before it can be left out.
        fits = [j for j in range(place, len(indices) + 1) if j - place <= sum(optional[: j - 1])]
        here = [_stages(family, domains, indices[j - 1], _extremes) for j in fits]
        all_widths = [_stages(family, domains, indices[j - 1], _numbers) for j in fits]
        widths = sorted({width for j in fits for width in _numbers(domains[f"stage{indices[j - 1]}.width"])})
        depth = max(max(_numbers(domains[f"stage{indices[j - 1]}.depth"])) for j in fits)
        ends_before = sum(not can for can in optional) < place
        stages = tuple(itertools.chain(*here))
        between = tuple(stage for stage in itertools.chain(*all_widths) if stage not in stages)
        yield Slot(tuple(widths), depth, stages, between, ends_before)


def _stages(
    family: ElasticFamily,
    domains: Mapping[str, tuple[Scalar, ...]],
    index: int,
    of_widths: Callable[[Sequence[Scalar]], Iterable[Any]],
) -> Iterator[Stage]:
    """Yield stage `index` of the space in every combination of extreme settings, with the widths `of_widths`."""

    def of(part: str, *default: Scalar) -> Iterable[Any]:
        return _extremes(domains.get(f"stage{index}.{part}", default))

    depth = min(2, max(_numbers(domains[f"stage{index}.depth"])))
    if depth:
        extras = itertools.product(*(of(name) for name in family.extras))
        widths, strides = of_widths(domains[f"stage{index}.width"]), of("stride", default_stride(index))
        for width, stride, extra in itertools.product(widths, strides, list(extras)):
            yield Stage(depth, width, stride, extra)


def _extremes(values: Sequence[Scalar]) -> list[Any]:
    """Return the values that are no numbers, the smallest and the largest number: shapes only grow with numbers."""
    numbers = _numbers(values)
    words = [value for value in values if isinstance(value, bool | str)]
    return [*words, *dict.fromkeys([min(numbers), max(numbers)])] if numbers else words


def _numbers(values: Sequence[Scalar]) -> tuple[Any, ...]:
    return tuple(value for value in values if not isinstance(value, bool | str))


def _stream(place: int) -> str:
    """Return the axis of the channels that leave stage `place`, 0 the stem."""
    return f"stream.{place}"


def _part(family: ElasticFamily, plan: BlockPlan, key: str) -> str:
    """Return the name inside a shared block of the tensor that is `key` in the module of `plan`."""
    match = _IN_BRANCH.fullmatch(key)
    return f"{family.parts(plan)[int(match[1])]}.{match[2]}" if match else key


@functools.lru_cache(maxsize=4096)
def _block_shapes(family: type[ElasticFamily], plan: BlockPlan) -> dict[str, tuple[int, ...]]:
    with Unfilled():
        return _shapes(family.block(plan))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}
