"""What families of staged networks share: flat choices to stages, canonical archs, closed-form prices, and source text.

A staged network is a stem, stages 1, 2, ... of equal blocks, and a classifier. Its choices are named

    stem_width, stem_stride (1), stage<i>.depth, stage<i>.width, stage<i>.stride (1 in the first stage, 2 in later ones)

and whatever the family adds; those with a default in brackets may be left out. Depth 0 removes a stage with its
downsampling; at least one stage must remain. In a canonical arch the stages that remain are numbered 1, 2, ... and
choices at their default are left out, so that two spellings of one network are one arch.
"""

from __future__ import annotations

import functools
import inspect
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import nn

from kdnas.core.arch import Arch, Scalar, normalise_scalar
from kdnas.core.measurement import Price
from kdnas.core.task import ImageTask
from kdnas.errors import ConfigError, Problem
from kdnas.nn import blocks
from kdnas.nn.blocks import InvertedPlan, ResidualPlan, StudentPlan
from kdnas.nn.counting import Count, conv_norm
from kdnas.students import StudentFamily

BlockPlan = ResidualPlan | InvertedPlan


@dataclass(frozen=True)
class Setting:
    """One choice a family knows: which values it takes, in code and in words."""

    accepts: Callable[[Scalar], bool]
    allowed: str


def whole(low: int, high: int) -> Setting:
    """Return the setting of a whole number in [low, high]."""
    return Setting(lambda value: type(value) is int and low <= value <= high, f"whole numbers {low}..{high}")


def one_of(*values: Scalar) -> Setting:
    """Return the setting of one of `values`, type included (True is not 1)."""
    known = {(type(value), value) for value in values}
    return Setting(lambda value: (type(value), value) in known, ", ".join(map(str, values)))


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


WIDTH = whole(1, 8192)
STRIDE = whole(1, 4)
_STAGE = re.compile(r"stage([1-9][0-9]?)\.(.+)")


class StagedFamily(StudentFamily):
    """A family whose networks are a stem, stages of blocks, and a classifier. Members fill in the class variables."""

    name: ClassVar[str]
    extras: ClassVar[Mapping[str, Setting]]
    """The family's own settings of every stage, all required."""
    with_head: ClassVar[bool] = False
    """Whether the family has the choice `head_width`, the width of a last 1x1 convolution (0: none)."""
    block: ClassVar[type[nn.Module]]
    exported: ClassVar[tuple[type, ...]]
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
    def count(plan: Any, height: int, width: int) -> Count:
        """Return the closed-form count of one block."""

    def canonical(self, choices: Mapping[str, Scalar]) -> Arch:
        """Return the arch that `choices` spell. Raises ConfigError naming every problem."""
        choices = {name: normalise_scalar(value) for name, value in choices.items()}
        problems = self._problems(choices)
        if problems:
            raise ConfigError(problems)
        network = self._read(choices)
        if not network.stages:
            raise ConfigError(Problem("stage1.depth", "every stage has depth 0; at least one stage must remain"))
        spelled: dict[str, Scalar] = {"stem_width": network.stem_width}
        if network.stem_stride != 1:
            spelled["stem_stride"] = network.stem_stride
        if network.head_width:
            spelled["head_width"] = network.head_width
        channels = network.stem_width
        for index, stage in enumerate(network.stages, 1):
            spelled[f"stage{index}.depth"], spelled[f"stage{index}.width"] = stage.depth, stage.width
            if stage.stride != _default_stride(index):
                spelled[f"stage{index}.stride"] = stage.stride
            for name, value in zip(self.extras, _simplified(type(self), channels, stage), strict=True):
                spelled[f"stage{index}.{name}"] = value
            channels = stage.width
        return Arch.of(self.name, spelled)

    def plan(self, arch: Arch, task: ImageTask) -> StudentPlan:
        """Return every block's shape for `arch` on `task`."""
        network = self._read(arch.choices)
        stages, channels = [], network.stem_width
        for stage in network.stages:
            stages.append(self.blocks(channels, stage))
            channels = stage.width
        return StudentPlan(
            in_channels=task.input_shape[0],
            stem_width=network.stem_width,
            stem_stride=network.stem_stride,
            stages=tuple(stages),
            head_width=network.head_width,
            num_classes=task.num_classes,
        )

    def price(self, arch: Arch, task: ImageTask) -> Price:
        """Return the closed-form MACs and parameters of `arch`, equal to fvcore's conv, linear and matmul counts."""
        network = self._read(dict(arch.items))
        channels, height, width = task.input_shape
        stem = conv_norm(channels, network.stem_width, 3, network.stem_stride, 1, height, width)
        macs, params, height, width = stem
        channels = network.stem_width
        for stage in network.stages:
            count = _stage_count(type(self), channels, stage, height, width)
            macs, params, height, width = macs + count.macs, params + count.params, count.height, count.width
            channels = stage.width
        if network.head_width:
            head = conv_norm(channels, network.head_width, 1, 1, 1, height, width)
            macs, params, channels = macs + head.macs, params + head.params, network.head_width
        classifier = channels * task.num_classes
        return Price(macs=macs + classifier, params=params + classifier + task.num_classes)

    def build(self, arch: Arch, task: ImageTask) -> nn.Module:
        """Return the student, freshly initialised from torch's global generator."""
        return blocks.Student(self.plan(arch, task), self.block)

    def source(self, arch: Arch, task: ImageTask) -> str:
        """Return Python source that needs only torch and defines `build_student()` for this arch."""
        shape = ", ".join(map(str, task.input_shape))
        pieces = [
            _HEADER.format(family=self.name, arch_id=arch.arch_id, shape=shape, classes=task.num_classes),
            *(inspect.getsource(item).rstrip() for item in self.exported),
            inspect.getsource(blocks.initialise).rstrip(),
            "PLAN = " + _literal(self.plan(arch, task)),
            _BUILD.format(block=self.block.__name__),
        ]
        return "\n\n\n".join(pieces)

    def _problems(self, choices: Mapping[str, Scalar]) -> list[Problem]:
        """Return every unknown, missing and impossible choice."""
        problems, stages, family = [], set(), type(self)
        for name, value in choices.items():
            setting, index = _setting(family, name)
            if setting is None:
                known = (*_network_settings(family), *(f"stage<i>.{part}" for part in _stage_settings(family)))
                problems.append(Problem(name, f"is no choice of {self.name}", ", ".join(known)))
            else:
                stages.add(index)
                if not setting.accepts(value):
                    problems.append(Problem(name, f"cannot be {value!r}", setting.allowed))
        required = ["stem_width"]
        for index in range(1, max([1, *stages]) + 1):
            depth, *others = _stage_keys(family, index)
            required += [key for key in others if not key.endswith(".stride")] if choices.get(depth) else [depth]
        problems += [Problem(key, "is required", _allowed(family, key)) for key in required if key not in choices]
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
                stride = choices.get(stride_key) or _default_stride(index)
                stages.append(Stage(depth, choices[width_key], stride, tuple([choices[key] for key in extra_keys])))
            index += 1
        return Network(
            choices["stem_width"], choices.get("stem_stride", 1), choices.get("head_width", 0), tuple(stages)
        )


def _default_stride(index: int) -> int:
    return 1 if index == 1 else 2


@functools.cache
def _network_settings(family: type[StagedFamily]) -> dict[str, Setting]:
    head = {"head_width": whole(0, 8192)} if family.with_head else {}
    return {"stem_width": WIDTH, "stem_stride": STRIDE, **head}


@functools.cache
def _stage_settings(family: type[StagedFamily]) -> dict[str, Setting]:
    return {"depth": whole(0, 64), "width": WIDTH, "stride": STRIDE, **family.extras}


@functools.cache
def _stage_keys(family: type[StagedFamily], index: int) -> tuple[str, ...]:
    """Return the names of stage `index`'s choices: depth, width, stride, then the family's own."""
    return tuple(f"stage{index}.{part}" for part in _stage_settings(family))


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


@functools.lru_cache(maxsize=1 << 16)
def _simplified(family: type[StagedFamily], in_channels: int, stage: Stage) -> tuple[Any, ...]:
    return family.simplify(in_channels, stage)


@functools.lru_cache(maxsize=1 << 16)
def _stage_count(family: type[StagedFamily], in_channels: int, stage: Stage, height: int, width: int) -> Count:
    macs = params = 0
    for block in family.blocks(in_channels, stage):
        count = family.count(block, height, width)
        macs, params, height, width = macs + count.macs, params + count.params, count.height, count.width
    return Count(macs, params, height, width)


def _literal(plan: StudentPlan) -> str:
    """Return `plan` as Python source, one block a line."""
    lines = ["StudentPlan("]
    lines += [f"    {name}={getattr(plan, name)}," for name in ("in_channels", "stem_width", "stem_stride")]
    lines.append("    stages=(")
    for stage in plan.stages:
        lines += ["        (", *(f"            {block!r}," for block in stage), "        ),"]
    lines += ["    ),", f"    head_width={plan.head_width},", f"    num_classes={plan.num_classes},", ")"]
    return "\n".join(lines)


_HEADER = '''"""Student {arch_id} of the {family} family. Needs only torch.

`build_student()` returns the network, freshly initialised: load the trained weights with `load_state_dict`.
Input: normalised images [B, {shape}]. Output: logits [B, {classes}].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional'''

_BUILD = '''def build_student() -> nn.Module:
    """Return the student, freshly initialised."""
    return Student(PLAN, {block})
'''
