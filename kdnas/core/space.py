"""The search space: named finite domains, when each is active, and how to draw from them.

A space is data. An *assignment* gives every choice a value; `SearchSpace.active` drops the choices that a condition
switches off. Which network an assignment stands for (its `Arch`) is decided by the student family.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import numpy as np

from kdnas.core.arch import Scalar

Assignment = dict[str, Scalar]


@dataclass(frozen=True)
class Choice:
    """A named finite domain. The order of `values` is meaningful when all are numbers."""

    name: str
    values: tuple[Scalar, ...]

    @property
    def step(self) -> int | None:
        """The common step of evenly spaced ascending integers, else None."""
        values = self.values
        if len(values) < 2 or not all(type(value) is int for value in values):
            return None
        steps = {b - a for a, b in itertools.pairwise(values)}  # type: ignore[operator]
        return steps.pop() if len(steps) == 1 and min(steps) > 0 else None  # type: ignore[return-value]


@dataclass(frozen=True)
class Condition:
    """`choice` is active only while choice `when` is active and has one of `values`."""

    choice: str
    when: str
    values: tuple[Scalar, ...]


def in_order(conditions: Sequence[Condition]) -> tuple[Condition, ...]:
    """Return `conditions`, those first that others hang on.

    Raises graphlib.CycleError where they go in a circle; its second argument is the choices of one, each the `when` of
    the next, the first repeated at the end.
    """
    gates: dict[str, list[str]] = {}
    for condition in conditions:
        gates.setdefault(condition.choice, []).append(condition.when)
    places = {name: place for place, name in enumerate(TopologicalSorter(gates).static_order())}
    return tuple(sorted(conditions, key=lambda condition: places[condition.when]))


@dataclass(frozen=True)
class SearchSpace:
    """The set of archs of one student family. `fixed` choices have one value and are never proposed."""

    name: str
    family: str
    choices: tuple[Choice, ...]
    conditions: tuple[Condition, ...] = ()
    fixed: Mapping[str, Scalar] = field(default_factory=dict)
    description: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How the family is built, where it has options."""

    @property
    def assignments(self) -> int:
        """The number of full assignments, inactive choices counted."""
        return math.prod(len(choice.values) for choice in self.choices)

    def values_of(self, name: str) -> tuple[Scalar, ...]:
        """Return the values that the choice called `name` can have; none where the space does not speak of it."""
        chosen = next((choice.values for choice in self.choices if choice.name == name), ())
        return (self.fixed[name],) if name in self.fixed else chosen

    def active(self, assignment: Mapping[str, Scalar]) -> Assignment:
        """Return the choices of `assignment` that are active, with the fixed ones added."""
        active = {**self.fixed, **assignment}
        for gate in self.gates:
            if gate.when not in active or active[gate.when] not in gate.values:
                active.pop(gate.choice, None)
        return active

    @functools.cached_property
    def gates(self) -> tuple[Condition, ...]:
        """The conditions, those first that others hang on: one pass over them decides what is active."""
        return in_order(self.conditions)

    def count(self) -> int:
        """Return the number of distinct assignments once inactive choices are dropped, exactly.

        Choices that no condition links are independent, so the count is a product over linked groups. In a group those
        that gate others are walked through; the others multiply.
        """
        parent = {choice.name: choice.name for choice in self.choices}

        def root(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        for condition in self.conditions:
            if condition.choice in parent and condition.when in parent:
                parent[root(condition.choice)] = root(condition.when)
        groups: dict[str, list[Choice]] = {}
        for choice in self.choices:
            groups.setdefault(root(choice.name), []).append(choice)
        total = 1
        gating = {condition.when for condition in self.conditions}
        for group in groups.values():
            gates = [choice for choice in group if choice.name in gating]
            free = {choice.name: choice.values for choice in group if choice.name not in gating}
            counts: dict[tuple[tuple[str, Scalar], ...], int] = {}
            for drawn in _product(gates):
                active = self.active({**drawn, **{name: values[0] for name, values in free.items()}})
                spelled = tuple((choice.name, active[choice.name]) for choice in gates if choice.name in active)
                counts[spelled] = math.prod(len(values) for name, values in free.items() if name in active)
            total *= sum(counts.values())
        return total

    @property
    def corners(self) -> tuple[Assignment, Assignment]:
        """The assignments of the first value of every choice, and of the last."""
        first, last = ({choice.name: choice.values[end] for choice in self.choices} for end in (0, -1))
        return first, last

    def neighbours(self, assignment: Mapping[str, Scalar]) -> Iterator[tuple[str, Assignment]]:
        """Yield (name, assignment) of everything that differs from `assignment` in that one choice."""
        for choice in self.choices:
            for value in choice.values:
                if value != assignment[choice.name]:
                    yield choice.name, {**assignment, choice.name: value}

    def enumerate(self) -> Iterator[Assignment]:
        """Yield every full assignment in a fixed order."""
        yield from _product(self.choices)

    def random(self, rng: np.random.Generator) -> Assignment:
        """Draw a full assignment, every choice uniform."""
        return {choice.name: choice.values[rng.integers(len(choice.values))] for choice in self.choices}

    def mutate(self, assignment: Mapping[str, Scalar], rng: np.random.Generator, changes: int = 1) -> Assignment:
        """Return a copy of `assignment` in which `changes` random choices were redrawn to another value."""
        movable = [choice for choice in self.choices if len(choice.values) > 1]
        mutant = dict(assignment)
        for index in rng.choice(len(movable), size=min(changes, len(movable)), replace=False):
            choice = movable[index]
            others = [value for value in choice.values if value != assignment[choice.name]]
            mutant[choice.name] = others[rng.integers(len(others))]
        return mutant


def _product(choices: list[Choice] | tuple[Choice, ...]) -> Iterator[Assignment]:
    names = [choice.name for choice in choices]
    for values in itertools.product(*(choice.values for choice in choices)):
        yield dict(zip(names, values, strict=True))
