"""Student families: which choices make a network, what it costs, and how it is built."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.measurement import Price
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.core.space import SearchSpace
from kdnas.core.task import TaskSpec
from kdnas.errors import ConfigError, Problem
from kdnas.nn.elastic import Supernet
from kdnas.registry import Registry


class StudentFamily(ABC):
    """One family of student networks. Built with no arguments; holds no state.

    The module that `build` returns takes normalised images [B, C, H, W] and gives logits [B, K]. It has a
    `stages` ModuleList (each stage's output is [B, C, H, W]) and a `classifier` linear layer, whose input is the
    embedding.
    """

    @classmethod
    def stated_choices(cls) -> Mapping[str, tuple[str, str | None]]:
        """Return for every choice that a space may have, in words, the values it takes and its default (None: none)."""
        return {}

    @abstractmethod
    def canonical(self, choices: Mapping[str, Scalar]) -> Arch:
        """Return the arch that `choices` spell, inactive and redundant choices dropped.

        Raises ConfigError naming every unknown, missing or impossible choice.
        """

    @abstractmethod
    def groups(self, arch: Arch, task: TaskSpec) -> Sequence[OperatorGroup]:
        """Return what a forward pass of `arch` consists of, in groups: what recurs among archs is the same object."""

    def operators(self, arch: Arch, task: TaskSpec) -> tuple[Operator, ...]:
        """Return what a forward pass of `arch` consists of; a latency table adds up its operators' times."""
        return tuple(itertools.chain.from_iterable([group.operators for group in self.groups(arch, task)]))

    def price(self, arch: Arch, task: TaskSpec) -> Price:
        """Return the closed-form MACs and parameters of `arch`, equal to fvcore's conv, linear and matmul counts."""
        groups = self.groups(arch, task)
        return Price(macs=sum([group.macs for group in groups]), params=sum([group.params for group in groups]))

    @abstractmethod
    def build(self, arch: Arch, task: TaskSpec) -> nn.Module:
        """Return the student, freshly initialised from torch's global generator."""

    @abstractmethod
    def source(self, arch: Arch, task: TaskSpec) -> str:
        """Return Python source that needs only torch and defines `build_student() -> nn.Module` for this arch."""

    def strides(self, domains: Mapping[str, Sequence[Scalar]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return (part, the strides that it may have) in the order of the network, given the values of each choice.

        Empty where the family's networks are not a row of parts that stride.
        """
        return ()

    def supernet(self, space: SearchSpace, task: TaskSpec) -> Supernet:
        """Return a supernet that holds every network of `space`, freshly initialised from torch's global generator.

        Raises ConfigError where the family has no elastic networks, as here.
        """
        raise ConfigError(Problem("space.family", f"students of {space.family} cannot share weights in a supernet"))


STUDENTS: Registry[type[StudentFamily]] = Registry("student family", __name__)
