"""What families of staged networks share: flat choices to stages, canonical archs, closed-form prices, and source text.

A staged network is a stem, stages 1, 2, ... of equal blocks, and a classifier. Its choices are named

    stem_width, stem_stride (1), projected (0)
    stage<i>.depth, stage<i>.width, stage<i>.stride (1 in the first stage, 2 in later ones)

and whatever the family adds; those with a default in brackets may be left out. Depth 0 removes a stage with its
downsampling; at least one stage must remain. `projected` channels are those that the classifier of a teacher takes: the
last maps are brought to them, and that classifier, which is not trained on, is the student's (SimKD, Chen et al., CVPR
2022). In a canonical arch the stages that remain are numbered 1, 2, ... and
choices at their default are left out, so that two spellings of one network are one arch.
"""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from kdnas.core.arch import Arch, Scalar, normalise_scalar
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.core.space import SearchSpace
from kdnas.errors import ConfigError, Problem
from kdnas.nn import blocks
from kdnas.nn.blocks import InvertedPlan, ResidualPlan, StudentPlan
from kdnas.nn.counting import chain
from kdnas.nn.taps import Classifier, example_inputs, output_shapes
from kdnas.students import FamilyContext, StudentFamily
from kdnas.students._settings import Setting, image_shape, whole
from kdnas.students._source import standalone

BlockPlan = ResidualPlan | InvertedPlan


class Stage(NamedTuple):
    """A stage that is there: `depth` >= 1 blocks; `extras` are the family's own settings in their order."""

    depth: int
    width: int
    stride: int
    extras: tuple[Any, ...]


class Network(NamedTuple):
    """The settings of a network, stages of depth 0 left out."""

    stem_width: int
    stem_stride: int
    head_width: int
    stages: tuple[Stage, ...]
    projected: int


WIDTH = whole(1, 8192)
HEAD_WIDTH = whole(0, 8192)
STRIDE = whole(1, 4)
PROJECTED = whole(0, 1 << 16)
_MAX_STAGES = 99
_STAGE = re.compile(r"stage([1-9][0-9]?)\.(.+)")


class StagedFamily(StudentFamily):
    """A family whose networks are a stem, stages of blocks, and a classifier. Members fill in the class variables."""

    name: ClassVar[str]
    tasks = ("image_classification",)
    extras: ClassVar[Mapping[str, Setting]]
    """The family's own settings of every stage, all required."""
    with_head: ClassVar[bool] = False
    """Whether the family has the choice `head_width`, the width of a last 1x1 convolution (0: none)."""
    block: ClassVar[type[nn.Module]]
    exported: ClassVar[tuple[Callable[..., Any], ...]]
    """The classes of `kdnas.nn.blocks` that the family's networks consist of, in the order of their definition."""

    @staticmethod
    @abstractmethod
    def blocks(in_channels: int, stage: Stage) -> tuple[BlockPlan, ...]:
        """Return the blocks of `stage` on an input of `in_channels`."""

    @staticmethod
    @abstractmethod
    def simplify(in_channels: int, stage: Stage) -> tuple[Any, ...]:
        """Return the one spelling of the stage's extras among those that give the same blocks."""

    @staticmethod
    @abstractmethod
    def block_operators(plan: Any, height: int, width: int) -> tuple[Operator, ...]:
        """Return the operators of one block on an input of `height` x `width` pixels."""

    def __init__(self, context: FamilyContext):
        super().__init__(context)
        self._shape = image_shape(context, self.name)

    @classmethod
    def stated_choices(cls) -> Mapping[str, tuple[str, str | None]]:
        """Return for every choice the values it takes and its default; `stage<i>` stands for stage1, stage2, ..."""
        defaults = {"stem_stride": "1", "head_width": "0", "projected": "0", "stage<i>.stride": "1 in stage 1, else 2"}
        stages = {f"stage<i>.{name}": setting for name, setting in _stage_settings(cls).items()}
        settings = {**_network_settings(cls), **stages}
        return {name: (setting.allowed, defaults.get(name)) for name, setting in settings.items()}

    @classmethod
    def canonical(cls, choices: Mapping[str, Scalar]) -> Arch:
        """Return the arch that `choices` spell. Raises ConfigError naming every problem."""
        given = choices.get
        stages = _named_stages(cls, tuple(choices))
        ends = _spelled_ends(given("stem_width"), given("stem_stride"), given("head_width"), given("projected"))
        if stages is None or ends is None:
            raise ConfigError(cls._problems(choices))
        channels, items = ends
        position = 1
        for index, keys in enumerate(stages, 1):
            stage = _spelled_stage(cls, index, position, channels, *map(given, keys))
            if stage is None:
                raise ConfigError(cls._problems(choices))
            if stage.items:
                channels, items, position = stage.width, items + stage.items, position + 1
        if position == 1:
            raise ConfigError(Problem("stage1.depth", "every stage has depth 0; at least one stage must remain"))
        return Arch(cls.name, tuple(sorted(items)))

    @classmethod
    def only_random(cls, space: SearchSpace) -> str:
        """Return that students with their teacher's classifier have nothing else of it, nor of a supernet."""
        return (
            "students that end in their teacher's classifier begin at random"
            if any(space.values_of("projected"))
            else ""
        )

    def plan(self, arch: Arch) -> StudentPlan:
        """Return every block's shape for `arch`."""
        network = self._read(arch.choices)
        stages, channels = [], network.stem_width
        for stage in network.stages:
            stages.append(self.blocks(channels, stage))
            channels = stage.width
        return StudentPlan(
            in_channels=self._shape[0],
            stem_width=network.stem_width,
            stem_stride=network.stem_stride,
            stages=tuple(stages),
            head_width=network.head_width,
            num_classes=self.task.outputs,
            projected=network.projected,
        )

    def groups(self, arch: Arch) -> Sequence[OperatorGroup]:
        """Return stem, stages, and head with classifier."""
        return _pieces(type(self), arch, self._shape, self.task.outputs)

    def build(self, arch: Arch) -> nn.Module:
        """Return the student, freshly initialised from torch's global generator, its teacher's classifier as it is.

        Raises ConfigError where the arch is made for a teacher's classifier, and no teacher has it.
        """
        plan = self.plan(arch)
        student = blocks.Student(plan, self.block)
        if plan.projected and self.context.teachers:
            reused = self._reused(plan.projected)
            with torch.no_grad():
                student.classifier.weight.copy_(reused.weight)
                if reused.bias is not None:
                    student.classifier.bias.copy_(reused.bias)
            student.classifier.requires_grad_(False)
        return student

    def space(self, stated: SearchSpace) -> SearchSpace:
        """Return the space as it is. Raises ConfigError where it is for a teacher's classifier that is not there."""
        for width in stated.values_of("projected"):
            if width:
                self._reused(width)
        return stated

    def _reused(self, width: Any) -> Classifier:
        """Return the classifier of the first teacher that has one of `width` pooled channels. Raises ConfigError."""
        for classifier in self._pooled_classifiers.values():
            if classifier.weight.shape == (self.task.outputs, width):
                return classifier
        takes = [f"{name} takes {head.weight.shape[1]} channels" for name, head in self._pooled_classifiers.items()]
        others = [name for name in self.context.teachers if name not in self._pooled_classifiers]
        takes += [f"{name} has no linear classifier of its pooled last maps" for name in others]
        what = f"no teacher has a classifier of {width} channels that students of {self.task.outputs} outputs could use"
        raise ConfigError(Problem("space.projected", f"{what}: {'; '.join(takes) or 'there is no teacher'}"))

    @functools.cached_property
    def _pooled_classifiers(self) -> dict[str, Classifier]:
        """The classifiers of those teachers whose last maps are pooled before it, by the teachers' names."""
        found = {}
        for name, teacher in self.context.teachers.items():
            task = self.task if teacher.data is None else teacher.data.task
            example = example_inputs(task, next(iter(teacher.module.state_dict().values())).device)
            shapes = output_shapes(teacher.module, teacher.stages, teacher.classifier, *example)
            if shapes.pooled and shapes.classifier is not None:
                found[name] = shapes.classifier
        return found

    def strides(self, domains: Mapping[str, Sequence[Scalar]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return the strides that stem and stages may have, given the values of every choice of a space."""
        stages = sorted({int(match[1]) for name in domains if (match := _STAGE.fullmatch(name))})
        named = [("stem", "stem_stride", 1), *((f"stage{i}", f"stage{i}.stride", default_stride(i)) for i in stages)]
        return tuple((part, tuple(sorted(domains.get(key, (default,))))) for part, key, default in named)  # type: ignore[arg-type]

    def source(self, arch: Arch) -> str:
        """Return Python source that needs only torch and defines `build_student()` for this arch."""
        parts = (*self.exported, blocks.initialise)
        built = f"Student(PLAN, {self.block.__name__})"
        return standalone(self.name, arch, self.task, parts, _literal(self.plan(arch)), built)

    @classmethod
    def _problems(cls, choices: Mapping[str, Scalar]) -> list[Problem]:
        """Return every unknown, missing and impossible choice."""
        problems, stages = [], set()
        choices = {name: normalise_scalar(value) for name, value in choices.items()}
        for name, value in choices.items():
            setting, index = _setting(cls, name)
            if setting is None:
                known = (*_network_settings(cls), *(f"stage<i>.{part}" for part in _stage_settings(cls)))
                problems.append(Problem(name, f"is no choice of {cls.name}", ", ".join(known)))
            else:
                stages.add(index)
                if not setting.accepts(value):
                    problems.append(Problem(name, f"cannot be {value!r}", setting.allowed))
        required = ["stem_width"]
        for index in range(1, max([1, *stages]) + 1):
            depth, *others = _stage_keys(cls, index)
            required += [key for key in others if not key.endswith(".stride")] if choices.get(depth) else [depth]
        problems += [Problem(key, "is required", _allowed(cls, key)) for key in required if key not in choices]
        return problems

    def _read(self, choices: Mapping[str, Any]) -> Network:
        """Return the network that sound `choices` spell."""
        stages, family, index = [], type(self), 1
        while True:
            depth_key, width_key, stride_key, *extra_keys = _stage_keys(family, index)
            depth = choices.get(depth_key)
            if depth is None:
                break
            if depth:
                stride = choices.get(stride_key) or default_stride(index)
                stages.append(Stage(depth, choices[width_key], stride, tuple([choices[key] for key in extra_keys])))
            index += 1
        return Network(
            choices["stem_width"],
            choices.get("stem_stride", 1),
            0 if choices.get("projected") else choices.get("head_width", 0),
            tuple(stages),
            choices.get("projected", 0),
        )


def default_stride(index: int) -> int:
    """Return the stride of stage `index` where none is stated."""
    return 1 if index == 1 else 2


@functools.cache
def _network_settings(family: type[StagedFamily]) -> dict[str, Setting]:
    head = {"head_width": HEAD_WIDTH} if family.with_head else {}
    return {"stem_width": WIDTH, "stem_stride": STRIDE, **head, "projected": PROJECTED}


@functools.cache
def _stage_settings(family: type[StagedFamily]) -> dict[str, Setting]:
    return {"depth": whole(0, 64), "width": WIDTH, "stride": STRIDE, **family.extras}


def _stage_keys(family: type[StagedFamily], index: int) -> tuple[str, ...]:
    """Return the names of stage `index`'s choices: depth, width, stride, then the family's own."""
    return _all_keys(family)[index - 1]


@functools.cache
def _all_keys(family: type[StagedFamily]) -> tuple[tuple[str, ...], ...]:
    """Return the names of every stage's choices."""
    return tuple(tuple(f"stage{i}.{part}" for part in _stage_settings(family)) for i in range(1, _MAX_STAGES + 1))


@functools.lru_cache(maxsize=4096)
def _setting(family: type[StagedFamily], name: str) -> tuple[Setting | None, int]:
    """Return the setting called `name` (None: unknown) and its stage, 0 for one of the whole network."""
    match = _STAGE.fullmatch(name)
    if match is None:
        return _network_settings(family).get(name), 0
    return _stage_settings(family).get(match[2]), int(match[1])


def _allowed(family: type[StagedFamily], name: str) -> str:
    setting, _ = _setting(family, name)
    return setting.allowed if setting else ""


# What follows is what makes a proposal cheap: spaces have many archs but few stages, so each stage is checked, spelled
# and counted once. Caches of raw values are typed, because True is not 1.

_Items = tuple[tuple[str, Scalar], ...]


class _Spelled(NamedTuple):
    """The one spelling of a stage and the channels that come out; no items where the stage is left out."""

    width: int
    items: _Items


@functools.lru_cache(maxsize=1024)
def _named_stages(family: type[StagedFamily], names: tuple[str, ...]) -> tuple[tuple[str, ...], ...] | None:
    """Return the keys of stage 1 up to the last that `names` speak of; None where a name is unknown."""
    settings = [_setting(family, name) for name in names]
    if any(setting is None for setting, _ in settings):
        return None
    return _all_keys(family)[: max([1, *(index for _, index in settings)])]


@functools.lru_cache(maxsize=4096, typed=True)
def _spelled_ends(stem_width: Any, stem_stride: Any, head_width: Any, projected: Any) -> tuple[int, _Items] | None:
    """Return the stem's channels and the one spelling of both ends (None: not given); None where they are wrong."""
    stem_width, stem_stride = normalise_scalar(stem_width), normalise_scalar(stem_stride)
    head_width, projected = normalise_scalar(head_width), normalise_scalar(projected)
    sound = WIDTH.accepts(stem_width) and (stem_stride is None or STRIDE.accepts(stem_stride))
    ends = ((head_width, HEAD_WIDTH), (projected, PROJECTED))
    if not sound or not all(value is None or setting.accepts(value) for value, setting in ends):
        return None
    items: list[tuple[str, Scalar]] = [("stem_width", stem_width)]
    if stem_stride not in (None, 1):
        items.append(("stem_stride", stem_stride))
    if projected:
        items.append(("projected", projected))
    elif head_width:
        items.append(("head_width", head_width))
    return stem_width, tuple(items)


@functools.lru_cache(maxsize=1 << 16, typed=True)
def _spelled_stage(
    family: type[StagedFamily], index: int, position: int, in_channels: int, *raw: Any
) -> _Spelled | None:
    """Return stage `index` spelled as stage `position`; None where its `raw` values are wrong.

    They are those of `_stage_keys`, None where not given.
    """
    values = [normalise_scalar(value) for value in raw]
    settings = _stage_settings(family).values()
    depth, width, stride, *extras = values
    known = all(value is None or setting.accepts(value) for setting, value in zip(settings, values, strict=True))
    if not known or depth is None or (depth and (width is None or None in extras)):
        return None
    if not depth:
        return _Spelled(in_channels, ())
    stage = Stage(depth, width, stride or default_stride(index), tuple(extras))  # type: ignore[arg-type]
    spelled = (stage.depth, stage.width, stage.stride, *family.simplify(in_channels, stage))
    items = dict(zip(_stage_keys(family, position), spelled, strict=True))
    if stage.stride == default_stride(position):
        del items[f"stage{position}.stride"]
    return _Spelled(stage.width, tuple(items.items()))


@dataclass(frozen=True, eq=False)
class _Piece(OperatorGroup):
    """A part of a network, and the shape that comes out."""

    channels: int
    height: int
    width: int


@functools.lru_cache(maxsize=1024)
def _pieces(family: type[StagedFamily], arch: Arch, shape: tuple[int, int, int], classes: int) -> list[_Piece]:
    """Return stem, stages, and head with classifier: kept for whoever asks for price and operators in turn."""
    choices = dict(arch.items)
    given: Callable[[str], Any] = choices.get
    piece = _stem(*shape, given("stem_width"), given("stem_stride") or 1)
    pieces = [piece]
    for index, keys in enumerate(_all_keys(family), 1):
        depth = given(keys[0])
        if depth is None:
            break
        if depth:
            piece = _stage_piece(family, index, piece.channels, piece.height, piece.width, *map(given, keys))
            pieces.append(piece)
    ends = given("projected") or 0, given("head_width") or 0
    return [*pieces, _ending(piece.channels, piece.height, piece.width, *ends, classes)]


@functools.lru_cache(maxsize=1024)
def _stem(channels: int, height: int, width: int, stem_width: int, stem_stride: int) -> _Piece:
    (stem,) = chain([(channels, stem_width, 3, stem_stride, 1)], height, width)
    return _Piece((stem,), stem_width, stem.out_height, stem.out_width)


@functools.lru_cache(maxsize=1 << 16)
def _stage_piece(
    family: type[StagedFamily], index: int, in_channels: int, height: int, width: int, *values: Any
) -> _Piece:
    """Return stage `index` of sound `values` (those of `_stage_keys`)."""
    depth, channels, stride, *extras = values
    operators: list[Operator] = []
    for block in family.blocks(in_channels, Stage(depth, channels, stride or default_stride(index), tuple(extras))):
        operators += family.block_operators(block, height, width)
        height, width = -(-height // block.stride), -(-width // block.stride)
    return _Piece(tuple(operators), channels, height, width)


@functools.lru_cache(maxsize=4096)
def _ending(channels: int, height: int, width: int, projected: int, head_width: int, classes: int) -> _Piece:
    """Return the projection or the head (0: none) with the classifier."""
    layers, middle = [], max(1, projected // 2)
    if projected:
        layers = [(channels, middle, 1, 1, 1), (middle, middle, 3, 1, 1), (middle, projected, 1, 1, 1)]
    elif head_width:
        layers = [(channels, head_width, 1, 1, 1)]
    classifier = Operator("classifier", projected or head_width or channels, classes, height, width)
    return _Piece((*chain(layers, height, width), classifier), classes, 1, 1)


def _literal(plan: StudentPlan) -> str:
    """Return `plan` as Python source, one block a line."""
    lines = ["StudentPlan("]
    lines += [f"    {name}={getattr(plan, name)}," for name in ("in_channels", "stem_width", "stem_stride")]
    lines.append("    stages=(")
    for stage in plan.stages:
        lines += ["        (", *(f"            {block!r}," for block in stage), "        ),"]
    ends = ("head_width", "num_classes", "projected")
    lines += ["    ),", *(f"    {name}={getattr(plan, name)}," for name in ends), ")"]
    return "\n".join(lines)
