"""Student families: which choices make a network, what it costs, and how it is built."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.measurement import Price
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.core.space import SearchSpace
from kdnas.core.task import TaskSpec
from kdnas.errors import ConfigError, Problem
from kdnas.nn.elastic import Supernet
from kdnas.nn.origin import Cut
from kdnas.nn.teacher import Teacher
from kdnas.registry import Registry

Samples = Callable[[int], tuple[tuple[Tensor, ...], Tensor]]
"""Returns (inputs, targets) of at most so many training samples, raw, on the study's device: the same each time."""


@dataclass(frozen=True)
class FamilyContext:
    """What students are made for, and what they may be cut from."""

    task: TaskSpec
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    """By name. Empty where a family is only asked what its networks are and cost."""
    samples: Samples | None = None
    """Shows what matters in a teacher; None where no data are open."""
    kept: Path | None = None
    """A file of the run folder for what a family finds out once; None where there is no run folder."""
    outline: object | None = None
    """The family's outline, made where a teacher is open (`StudentFamily.outline`)."""


class StudentFamily(ABC):
    """One family of student networks, built once for a study from what that has opened.

    The module that `build` returns takes the task's inputs in their order, images normalised, and gives logits [B, K],
    or [B, T, V] where a sample has many predictions. It has a `stages` ModuleList (each stage's output is a map [B, C,
    H, W], or tokens [B, N, C]) and a `classifier` linear layer, whose input is the embedding. A
    `distillation_classifier` next to it learns from the teacher in its place; the module's answer is then the mean.
    """

    name: ClassVar[str] = ""
    """What spaces name it by, and so the family of its archs: `Arch.of(cls.name, ...)`. Set where it is registered."""

    derived: ClassVar[bool] = False
    """Whether its choices are read off the study's teacher: nothing is known of them before that is open.

    Where they are not, `canonical` is a class method: what only reads a study opens nothing.
    """
    tasks: ClassVar[tuple[str, ...]] = ()
    """The kinds of work that its students can do; empty: any."""
    optimizer: ClassVar[str] = "sgd"
    """What trains its students well, with `learning_rate` and `weight_decay`: `kdnas init` proposes it."""
    learning_rate: ClassVar[float] = 0.1
    learning_rates: ClassVar[tuple[float, float]] = (0.01, 0.3)
    """Within which a search of the learning rate looks, unless a study states another range."""
    weight_decay: ClassVar[float] = 5e-4

    def __init__(self, context: FamilyContext):
        self.context = context
        self.task = context.task

    @classmethod
    def stated_choices(cls) -> Mapping[str, tuple[str, str | None]]:
        """Return for every choice that a space may have, in words, the values it takes and its default (None: none)."""
        return {}

    @classmethod
    def only_random(cls, space: SearchSpace) -> str:
        """Return why students of `space` begin with no weights but random ones; empty where they may, as here."""
        return ""

    @property
    def fingerprints(self) -> dict[str, str]:
        """What it has found out that decides its students, hashed, by name; empty where their archs alone do."""
        return {}

    def keep(self) -> None:
        """Write what it has found out where it finds that again (`FamilyContext.kept`); here nothing."""
        return

    @property
    def outline(self) -> object | None:
        """What it needs to spell and to price its students where no teacher is open; None: nothing."""
        return None

    def space(self, stated: SearchSpace) -> SearchSpace:
        """Return the space as it is searched: what a study states, completed by what the teacher has."""
        return stated

    @abstractmethod
    def canonical(self, choices: Mapping[str, Scalar]) -> Arch:
        """Return the arch that `choices` spell, inactive and redundant choices dropped.

        Raises ConfigError naming every unknown, missing or impossible choice.
        """

    @abstractmethod
    def groups(self, arch: Arch) -> Sequence[OperatorGroup]:
        """Return what a forward pass of `arch` consists of, in groups: what recurs among archs is the same object."""

    def operators(self, arch: Arch) -> tuple[Operator, ...]:
        """Return what a forward pass of `arch` consists of; a latency table adds up its operators' times."""
        return tuple(itertools.chain.from_iterable([group.operators for group in self.groups(arch)]))

    def price(self, arch: Arch) -> Price:
        """Return the closed-form MACs and parameters of `arch`, equal to fvcore's conv, linear and matmul counts."""
        groups = self.groups(arch)
        return Price(macs=sum([group.macs for group in groups]), params=sum([group.params for group in groups]))

    @abstractmethod
    def build(self, arch: Arch) -> nn.Module:
        """Return the student, freshly initialised from torch's global generator."""

    def ancestor(self) -> Teacher | None:
        """Return the teacher whose weights students can begin with; None where there is none, as here."""
        return None

    def inherit(self, arch: Arch) -> nn.Module:
        """Return the student with what its ancestor has for it, on that one's device, the rest freshly initialised.

        Raises ConfigError where it has no ancestor, or no samples to judge that one by.
        """
        raise ConfigError(Problem("start", f"students of {arch.family} inherit nothing from a teacher", "random"))

    def is_part(self, arch: Arch, larger: Arch) -> bool:
        """Return whether every weight of `arch` has a place in `larger`, so that it can be cut out of that one."""
        return arch == larger

    def cut_on(self, arch: Arch, larger: Arch, trained: nn.Module) -> nn.Module:
        """Return `arch` cut out of `trained`, a student of `larger`. Raises ConfigError where it is no part of that."""
        if arch != larger:
            what = f"{arch.arch_id} is no part of {larger.arch_id}: its weights cannot be cut out of that one's"
            raise ConfigError(Problem("init", what))
        return copy.deepcopy(trained)

    def cut(self, arch: Arch, student: nn.Module) -> tuple[nn.Module, Cut] | None:
        """Return the library's own network inside a built `student`, and what that was cut from.

        None where it is no library's, as here.
        """
        return None

    def source(self, arch: Arch) -> str | None:
        """Return Python source that needs only torch and defines `build_student() -> nn.Module` for this arch.

        None where there is none: the network is the user's code.
        """
        return None

    def strides(self, domains: Mapping[str, Sequence[Scalar]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return (part, the strides that it may have) in the order of the network, given the values of each choice.

        Empty where the family's networks are not a row of parts that stride.
        """
        return ()

    def supernet(self, space: SearchSpace) -> Supernet:
        """Return a supernet that holds every network of `space`, freshly initialised from torch's global generator.

        Raises ConfigError where the family has no elastic networks, as here.
        """
        raise ConfigError(Problem("space.family", f"students of {space.family} cannot share weights in a supernet"))

    def inherit_supernet(self, supernet: Supernet, largest: Arch, inputs: tuple[Tensor, ...]) -> float:
        """Give the `largest` network of `supernet` what its ancestor has for it: the share of its weights, in [0, 1].

        `inputs` are raw training samples by which importance in the ancestor is measured. Raises ConfigError where it
        has none.
        """
        raise ConfigError(Problem("space.family", f"students of {largest.family} inherit nothing from a teacher"))

    def at(self, size: int) -> Self:
        """Return the family of the same students for samples brought to `size`: pixels high, or tokens long.

        A family that has options hands them on.
        """
        return type(self)(dataclasses.replace(self.context, task=self.task.at(size)))


STUDENTS: Registry[type[StudentFamily]] = Registry("student family", __name__, StudentFamily)
"""Members: StudentFamily classes, `(context: FamilyContext, *, options)`."""


def family_for(
    name: str,
    task: TaskSpec,
    teachers: Mapping[str, Teacher] | None = None,
    samples: Samples | None = None,
    *,
    kept: Path | None = None,
    outline: object | None = None,
    options: Mapping[str, Any] | None = None,
) -> StudentFamily:
    """Return the family called `name` for students of `task`. Raises ConfigError where there is none of that name."""
    context = FamilyContext(task, teachers or {}, samples, kept, outline)
    family: StudentFamily = STUDENTS.build(name, context, **(options or {}))
    return family


def sibling_family(family: StudentFamily, name: str) -> StudentFamily:
    """Return the family called `name` for what `family` is for, which is itself most often. Raises ConfigError."""
    context = family.context
    return family if name == family.name else family_for(name, context.task, context.teachers, context.samples)


def stated_arch(family: str, choices: Mapping[str, Scalar]) -> Arch:
    """Return the arch that `choices` of the family of that name spell, as far as it is known with nothing open.

    The choices of a derived family stand as they are. Raises ConfigError as `StudentFamily.canonical` does.
    """
    member = STUDENTS.get(family)
    if member.derived:
        return Arch.of(family, choices)
    spelled: Arch = member.canonical(choices)  # type: ignore[call-arg, arg-type]
    return spelled
