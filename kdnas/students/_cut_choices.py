"""The choices of students cut out of a network: which axes and blocks go together, and how far each may be cut.

A choice's value is the size of its largest part, in units or blocks; its other parts are cut in proportion. By
granularity one choice rules the whole network, a stage, or a block:

    network    depth, width, inner, heads
    stage      stage1.depth, stage1.width, stage1.inner, ...; stem and head are what stands before and after the stages
    block      stage1.depth, stage1.width, stage1.block1.inner, ...
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator

from kdnas.core.arch import Scalar
from kdnas.core.space import Choice, Condition
from kdnas.errors import ConfigError, Problem
from kdnas.nn.cutting import Anatomy, Axis, Depth

Granularity = Literal["network", "stage", "block"]
_ROLES = ("depth", "width", "inner", "heads")
_RANGE = re.compile(r"\s*([0-9.]+?)\s*\.\.\s*([0-9.]+)\s*")
_ALLOWED = "shares of the whole such as [0.5, 1], sizes such as [96, 128], or a range such as 0.25..1"


@dataclass(frozen=True)
class Bounds:
    """What the parts of one role may be cut to: a list, or all between two ends; shares of the whole, or sizes."""

    ends: tuple[float, ...]
    ranged: bool
    shares: bool

    @classmethod
    def of(cls, options: float | str | Sequence[float]) -> Bounds:
        """Return the bounds that `options` spell. Raises ValueError."""
        ranged = isinstance(options, str)
        if isinstance(options, str):
            match = _RANGE.fullmatch(options)
            numbers = tuple(_number(text) for text in match.groups()) if match else ()
        else:
            numbers = (options,) if isinstance(options, int | float) else tuple(options)
        known = [number for number in numbers if number is not None and number > 0]
        if not known or len(known) < len(numbers):
            raise ValueError(f"must be {_ALLOWED}, got {options!r}")
        odd = [number for number in known if number > 1 and not float(number).is_integer()]
        if odd:
            raise ValueError(
                f"must be {_ALLOWED}: {odd[0]} is no share, being above 1, and no size, being no whole number"
            )
        shares = all(number <= 1 for number in known)
        if not shares and not all(float(number).is_integer() for number in known):
            raise ValueError(f"must be {_ALLOWED}: {options!r} mixes shares and sizes")
        if ranged and known[0] > known[1]:
            raise ValueError(f"must begin below its end, got {options!r}")
        return cls(tuple(known), ranged, shares)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _sound(options: float | str | tuple[float, ...]) -> float | str | tuple[float, ...]:
    Bounds.of(options)
    return options


Options = Annotated[float | str | tuple[float, ...], AfterValidator(_sound)]
"""What `Bounds.of` reads: as a study states it."""


@dataclass(frozen=True)
class _Part:
    """An axis or depth that a choice cuts: its whole size counts the blocks of the stage that always stay."""

    name: str
    whole: int
    least: int
    fixed: int
    step: int
    block: str
    """The block that it lies in, and that may be gone."""

    def at(self, share: float) -> int:
        """Return its size at this share of the whole, blocks that always stay not counted."""
        if share >= 1.0:
            return self.whole - self.fixed
        steps = max(math.floor(share * self.whole / self.step + 0.5), 1)
        return min(max(steps * self.step - self.fixed, self.least), self.whole - self.fixed)


@dataclass(frozen=True)
class CutChoice:
    """One choice: `parts` are what it cuts, the largest first."""

    name: str
    role: str
    parts: tuple[_Part, ...]

    @property
    def whole(self) -> int:
        """Its value in the whole network."""
        return self.parts[0].whole

    @cached_property
    def sizes(self) -> dict[int, dict[str, int]]:
        """By value, every one that it can have: the size of each part."""
        first = self.parts[0]
        values = range(first.step, self.whole, first.step) if first.step < self.whole else ()
        wanted = [value for value in (*values, self.whole) if value >= first.least + first.fixed]
        return {value: {part.name: part.at(value / self.whole) for part in self.parts} for value in wanted}

    def nearest(self, value: float) -> int:
        """Return the value that it can have nearest to `value`, of two the larger."""
        return min(self.sizes, key=lambda known: (abs(known - value), -known))

    def options(self, bounds: Bounds, where: str) -> tuple[int, ...]:
        """Return the values within `bounds`, ascending. Raises ConfigError where none of it can be one."""
        scale = self.whole if bounds.shares else 1
        ends = [end * scale for end in bounds.ends]
        if not bounds.shares:
            step = self.parts[0].step
            for end in ends if not bounds.ranged else ():
                if end not in self.sizes:
                    allowed = (
                        f"multiples of {step} up to {self.whole}" if step > 1 else f"{min(self.sizes)}..{self.whole}"
                    )
                    raise ConfigError(Problem(where, f"{self.name} cannot be {end:g} of {self.whole}", allowed))
            if bounds.ranged and ends[0] > self.whole:
                raise ConfigError(Problem(where, f"{self.name} has no more than {self.whole}"))
        if not bounds.ranged:
            return tuple(sorted({self.nearest(end) for end in ends}))
        inside = [value for value in self.sizes if ends[0] - 1e-9 <= value <= ends[1] + 1e-9]
        return tuple(inside or [self.nearest(ends[0])])


@dataclass(frozen=True)
class CutBlock:
    """A block that no other one's insides reach into: what rules it alone.

    `choices` set the sizes of its `axes`; others may share those choices, but each has axes of its own.
    """

    name: str
    choices: tuple[str, ...]
    axes: tuple[str, ...]
    depth: str = ""
    """The choice that may leave it out; empty: it always stays."""
    left_at: tuple[int, ...] = ()
    """The values of that choice at which it is there."""


class CutChoices:
    """The choices of the students of one network.

    Raises ConfigError where nothing is left to choose, or `freeze` names what is not there.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        *,
        granularity: Granularity,
        bounds: Mapping[str, Bounds],
        round_to: int,
        freeze: Sequence[str],
    ):
        self._anatomy = anatomy
        self._round_to = round_to
        frozen = self._frozen(granularity, freeze)
        grouped = self._grouped(granularity, frozen)
        self.choices = tuple(
            CutChoice(name, role, tuple(sorted(parts, key=lambda part: -part.whole)))
            for (name, role), parts in grouped.items()
        )
        self._by_name = {choice.name: choice for choice in self.choices}
        self._options = {choice.name: choice.options(bounds[choice.role], choice.role) for choice in self.choices}
        if self.choices and all(len(choice.sizes) == 1 for choice in self.choices):
            sizes = ", ".join(f"{choice.name} {choice.whole}" for choice in self.choices)
            what = f"the teacher is too small to cut: {sizes}, in steps of {round_to}"
            raise ConfigError(Problem("space", what, "a smaller round_to, or less under freeze"))
        if all(len(options) == 1 for options in self._options.values()):
            what = "leaves every student at one size: nothing is searched"
            raise ConfigError(Problem("space", what, "more options, or less under freeze"))
        self._gone_by: dict[tuple[int, ...], frozenset[str]] = {}
        self._spelled: dict[tuple[str, int, frozenset[str]], int | None] = {}

    @property
    def searched(self) -> tuple[Choice, ...]:
        """The choices of more than one option."""
        return tuple(Choice(name, options) for name, options in self._options.items() if len(options) > 1)

    @property
    def fixed(self) -> dict[str, Scalar]:
        """The others, and their value."""
        return {name: options[0] for name, options in self._options.items() if len(options) == 1}

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """When choices of single blocks are active: while the block is there."""
        return tuple(self._conditions())

    @property
    def values(self) -> Mapping[str, tuple[int, ...]]:
        """The values of every choice, by name, also those of one alone."""
        return self._options

    @property
    def shared(self) -> tuple[str, ...]:
        """The choices that reach across blocks, such as the width of what flows between them."""
        return tuple(
            choice.name
            for choice in self.choices
            if choice.role != "depth" and any(not part.block for part in choice.parts)
        )

    @property
    def blocks(self) -> tuple[CutBlock, ...]:
        """The blocks that choices which are not shared cut or leave out, in the network's order."""
        shared = set(self.shared)
        axes: dict[str, dict[str, list[str]]] = {}
        for choice in self.choices:
            for part in choice.parts if choice.role != "depth" and choice.name not in shared else ():
                axes.setdefault(part.block, {}).setdefault(choice.name, []).append(part.name)
        rulers = {part.name: choice for choice in self.choices if choice.role == "depth" for part in choice.parts}
        leaving: dict[str, tuple[str, tuple[int, ...]]] = {}
        for depth in self._anatomy.depths:
            if (ruler := rulers.get(depth.name)) is None:
                continue
            for rank, index in enumerate(depth.order):
                there = tuple(v for v in self._options[ruler.name] if ruler.sizes[v][depth.name] > rank)
                if len(there) < len(self._options[ruler.name]):
                    leaving[depth.blocks[index]] = ruler.name, there
        inside = [axis.block for axis in self._anatomy.axes if axis.block]
        order = dict.fromkeys([*inside, *(block for depth in self._anatomy.depths for block in depth.blocks)])
        return tuple(
            CutBlock(
                name,
                tuple(axes.get(name, {})),
                tuple(part for parts in axes.get(name, {}).values() for part in parts),
                *leaving.get(name, ("", ())),
            )
            for name in order
            if name in axes or name in leaving
        )

    def _conditions(self) -> Iterator[Condition]:
        depths = {part.name: choice for choice in self.choices if choice.role == "depth" for part in choice.parts}
        for choice in self.choices:
            blocks = {part.block for part in choice.parts}
            ruling = [d for d in self._anatomy.depths if blocks <= set(d.blocks) and d.name in depths]
            if len(blocks) != 1 or not ruling:
                continue
            (block,), (depth,) = blocks, ruling
            ranks = depth.order.index(depth.blocks.index(block))
            ruler = depths[depth.name]
            there = [v for v in self._options[ruler.name] if ruler.sizes[v][depth.name] > ranks]
            if len(there) < len(self._options[ruler.name]):
                yield Condition(choice.name, ruler.name, tuple(there))

    def canonical(self, given: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return the one spelling of a student: every choice that it has, those not `given` at the whole size.

        A whole number is a size, a broken one a share of the whole; each is brought to the nearest that can be. Raises
        ConfigError naming every unknown or impossible choice.
        """
        problems = [
            Problem(name, "is no choice of this teacher's students", ", ".join(self._by_name))
            for name in given
            if name not in self._by_name
        ]
        values: dict[str, int] = {}
        for choice in self.choices:
            value = given.get(choice.name, choice.whole)
            scaled = value * choice.whole if isinstance(value, float) and 0 < value <= 1 else value
            if isinstance(scaled, bool | str) or not 0 < scaled <= choice.whole:
                allowed = f"{min(choice.sizes)}..{choice.whole}, or a share of it such as 0.5"
                problems.append(Problem(choice.name, f"cannot be {value!r}", allowed))
            else:
                values[choice.name] = int(scaled) if scaled in choice.sizes else choice.nearest(scaled)
        if problems:
            raise ConfigError(problems)
        gone = self._gone(values)
        spelled = {choice.name: self._one_spelling(choice, values[choice.name], gone) for choice in self.choices}
        return {name: value for name, value in spelled.items() if value is not None}

    def sizes(self, choices: Mapping[str, Scalar]) -> dict[str, int]:
        """Return the sizes of a canonical student's axes and depths, by name; parts that nothing cuts are left out."""
        sizes: dict[str, int] = {}
        for name, value in choices.items():
            sizes.update(self._by_name[name].sizes[int(value)])
        return sizes

    def _gone(self, values: Mapping[str, int]) -> frozenset[str]:
        """Return the blocks that are not there at these values."""
        rulers = [choice for choice in self.choices if choice.role == "depth"]
        key = tuple(values[choice.name] for choice in rulers)
        if key not in self._gone_by:
            left = {name: size for choice in rulers for name, size in choice.sizes[values[choice.name]].items()}
            self._gone_by[key] = frozenset(
                depth.blocks[index]
                for depth in self._anatomy.depths
                if depth.name in left
                for index in depth.order[left[depth.name] :]
            )
        return self._gone_by[key]

    def _one_spelling(self, choice: CutChoice, value: int, gone: frozenset[str]) -> int | None:
        """Return the smallest value that cuts what is there as `value` does, None where nothing of it is there."""
        if not gone or choice.role == "depth":
            return value
        key = choice.name, value, gone
        if key not in self._spelled:
            here = [part.name for part in choice.parts if part.block not in gone]
            alike = [v for v, sizes in choice.sizes.items() if all(sizes[p] == choice.sizes[value][p] for p in here)]
            self._spelled[key] = min(alike) if here else None
        return self._spelled[key]

    def _grouped(self, granularity: Granularity, frozen: set[str]) -> dict[tuple[str, str], list[_Part]]:
        """Return the parts of every choice, by its name and role, in the order of stages and roles."""
        named: dict[tuple[int, int, int], tuple[str, str]] = {}
        parts: dict[tuple[int, int, int], list[_Part]] = {}
        numbers: dict[int, dict[str, int]] = {}
        for axis in self._anatomy.axes:
            if axis.block:
                inside = numbers.setdefault(axis.stage, {})
                inside.setdefault(axis.block, len(inside) + 1)
        last = max([depth.stage for depth in self._anatomy.depths], default=1)
        for part in self._anatomy.parts:
            if part.name in frozen:
                continue
            role: str = "depth" if isinstance(part, Depth) else part.role
            stage = 0 if granularity == "network" else part.stage
            single = granularity == "block" and isinstance(part, Axis) and bool(part.block)
            block = numbers[part.stage][part.block] if single and isinstance(part, Axis) else 0
            name = role
            if granularity != "network":
                owner = "stem" if part.stage == 0 else "head" if part.stage > last else f"stage{part.stage}"
                name = f"{owner}.{f'block{block}.' if block else ''}{role}"
            key = stage, block, _ROLES.index(role)
            named[key] = name, role
            parts.setdefault(key, []).append(self._part(part))
        return {named[key]: parts[key] for key in sorted(parts)}

    def _part(self, part: Axis | Depth) -> _Part:
        if isinstance(part, Depth):
            return _Part(part.name, len(part.blocks) + part.fixed, part.least, part.fixed, 1, "")
        step = 1 if part.role == "heads" else min(self._round_to, part.size)
        return _Part(part.name, part.size, part.least, 0, step, part.block)

    def _frozen(self, granularity: Granularity, freeze: Sequence[str]) -> set[str]:
        """Return the names of the parts that stay whole. Raises ConfigError where a pattern meets nothing."""
        choices = {part.name: name for (name, _), parts in self._grouped(granularity, set()).items() for part in parts}
        frozen: set[str] = set()
        problems = []
        for index, pattern in enumerate(freeze):
            met = {
                part.name
                for part in self._anatomy.parts
                if any(_meets(name, pattern) for name in (choices[part.name], *_modules(part)))
            }
            frozen |= met
            if not met:
                some = ", ".join(dict.fromkeys([*choices.values(), *self._anatomy.by_name]))
                problems.append(Problem(f"space.freeze.{index}", f"nothing of the teacher is called {pattern!r}", some))
        if problems:
            raise ConfigError(problems)
        return frozen


def _modules(part: Axis | Depth) -> list[str]:
    """Return what a part is called, and the modules that it changes."""
    if isinstance(part, Depth):
        return [part.name, *part.blocks]
    return [part.name, *{tie.tensor.rpartition(".")[0] for tie in part.ties if not tie.reads}]


def _meets(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
