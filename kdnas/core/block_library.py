"""A library of blocks: what a network loses when one block alone is replaced, and the best students that this predicts.

Each entry is one block at one setting of the choices that rule it: its loss, measured once with every other block
whole, and what it adds to the costs. A student's loss is predicted as the sum of its blocks' (Molchanov et al., "LANA",
2022; Bercovich et al., "Puzzle", 2024, whose replace-one-block scores these are). Costs add up exactly. So the best
student within a budget is a mixed-integer program, solved to its end by HiGHS (Huangfu and Hall, Mathematical
Programming Computation 2018):

    minimise sum of loss[e] x[e]   over 0 <= x[e] <= 1 and choices y[c, v] in {0, 1}
    with     sum over v of y[c, v] = 1                                 a choice has one value
             sum over the entries e of a block of x[e] = 1             a block has one setting
             sum of x[e] that take one of values V of c <= sum over v in V of y[c, v]      which is that of its choices
             sum of cost[e] x[e] <= budget
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdnas.core.arch import Scalar, normalise_scalar
from kdnas.core.objective import Constraint

_TIGHTENINGS = 20
"""The solver keeps a budget to a millionth; a solution past it is solved for again below it, so often at most."""
_BUDGET_SCALE = 1e3
_LOSS_SCALE = 1e4
"""Where coefficients are brought to: the solver's tolerances are absolute."""
_GAP = 1e-6
"""The share of the best loss to which it is proven; what remains of it is far below what a loss is measured to."""


@dataclass(frozen=True)
class Entry:
    """One block at one setting.

    `block` is its dotted name, empty for what is left of the network: the rest, at one setting of the choices that many
    blocks share.
    """

    block: str
    values: Mapping[str, tuple[Scalar, ...]]
    """It is that of students whose choices have one of these values; one that is not named may have any."""
    loss: float
    """Divergence of the network's answers from the teacher's in nats (of predicted numbers: error in variances), beyond
    that of the network whose blocks are all whole."""
    local: float
    """Mean squared error of the block's own output in its variance; 0 for the rest."""
    costs: Mapping[str, float]
    """What it adds to the costs of the network: the rest, whole; blocks, what they differ from whole ones by."""

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Entry:
        """Return the entry of a plain record. Raises KeyError, TypeError or ValueError where it is none."""
        values = {str(name): tuple(map(normalise_scalar, several)) for name, several in plain["values"].items()}
        costs = {str(name): float(cost) for name, cost in plain["costs"].items()}
        loss, local = float(plain["loss"]), float(plain["local"])
        if not (math.isfinite(loss) and math.isfinite(local) and all(map(math.isfinite, costs.values()))):
            raise ValueError("an entry holds what is no number")
        return cls(str(plain["block"]), values, loss, local, costs)


@dataclass(frozen=True)
class Solved:
    """The student of least predicted loss within a budget."""

    assignment: Mapping[str, Scalar]
    """A value of every choice, also where no block of it is left."""
    loss: float
    costs: Mapping[str, float]


class _Table:
    """The entries of one block. Raises ValueError where they are not one for every setting of its choices."""

    def __init__(self, block: str, entries: Sequence[Entry], domains: Mapping[str, Sequence[Scalar]]):
        self.entries = tuple(entries)
        self.choices = tuple(dict.fromkeys(name for entry in entries for name in entry.values))
        self._known: dict[tuple[Scalar, ...], Entry] = {}
        sizes = {name: len(domains[name]) for name in self.choices}
        held = sum(math.prod(len(entry.values.get(name, domains[name])) for name in sizes) for entry in entries)
        if held != math.prod(sizes.values()):
            raise ValueError(f"{block or 'the rest'} has no entry, or two, for some settings")

    def at(self, assignment: Mapping[str, Scalar]) -> Entry:
        """Return the entry of the student that `assignment` spells. Raises KeyError where there is none."""
        key = tuple(assignment[name] for name in self.choices)
        if key not in self._known:
            self._known[key] = next(
                entry
                for entry in self.entries
                if all(assignment[name] in several for name, several in entry.values.items())
            )
        return self._known[key]


class BlockLibrary:
    """The entries of every block of a network, and the students made of them.

    Raises ValueError where a block has not one entry for every setting of the choices that rule it.
    """

    def __init__(self, entries: Iterable[Entry]):
        self.entries = tuple(entries)
        self.choices: dict[str, tuple[Scalar, ...]] = {}
        """Their values, in the order of the entries."""
        blocks: dict[str, list[Entry]] = {}
        for entry in self.entries:
            blocks.setdefault(entry.block, []).append(entry)
            for name, several in entry.values.items():
                self.choices[name] = tuple(dict.fromkeys((*self.choices.get(name, ()), *several)))
        if not blocks:
            raise ValueError("a library without entries")
        self._tables = {block: _Table(block, own, self.choices) for block, own in blocks.items()}
        self._fronts: dict[object, tuple[Solved, ...]] = {}

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs that its entries have, by name."""
        return tuple(self.entries[0].costs)

    def chosen(self, assignment: Mapping[str, Scalar]) -> list[Entry]:
        """Return the entry of every block of the student that `assignment` spells.

        A choice that is not active may be left out. Raises KeyError where a value is none of the library's.
        """
        full = {name: normalise_scalar(assignment.get(name, values[0])) for name, values in self.choices.items()}
        if unknown := [f"{name} {value}" for name, value in full.items() if value not in self.choices[name]]:
            raise KeyError(", ".join(unknown))
        return [table.at(full) for table in self._tables.values()]

    def loss(self, assignment: Mapping[str, Scalar]) -> float:
        """Return the predicted loss of a student: the sum of its blocks'."""
        return math.fsum(entry.loss for entry in self.chosen(assignment))

    def price(self, assignment: Mapping[str, Scalar]) -> dict[str, float]:
        """Return the costs of a student, which its blocks' add up to."""
        chosen = self.chosen(assignment)
        return {name: math.fsum(entry.costs[name] for entry in chosen) for name in self.costs}

    def solve(self, bounds: Sequence[Constraint] = (), *, least: str | None = None) -> Solved | None:
        """Return the student of least predicted loss that meets the `bounds` on its costs; None where no student does.

        With `least` it is the one of least cost of that name. Bounds on other costs are left out.
        """
        program = _Program(self._tables, self.choices)
        known = [bound for bound in bounds if bound.name in self.costs]
        tightened = {bound: bound.bound for bound in known}
        for _ in range(_TIGHTENINGS):
            assignment = program.solve(tightened, least)
            if assignment is None:
                return None
            costs = self.price(assignment)
            broken = [bound for bound in known if bound.violation(costs[bound.name]) > 0]
            if not broken:
                return Solved(assignment, self.loss(assignment), costs)
            for bound in broken:
                room = max(bound.violation(costs[bound.name]), 1.0)
                tightened[bound] += -room if bound.operator == "<=" else room
        return None

    def front(self, lead: str, bounds: Sequence[Constraint] = (), *, count: int = 16) -> tuple[Solved, ...]:
        """Return the best students under up to `count` budgets of the cost `lead`, the cheapest first.

        The budgets are spread evenly, in logarithm, between the cheapest student within `bounds` and the cheapest of
        those that lose least. Each student is the best of the whole space under its budget; empty: none meets `bounds`.
        """
        key = lead, tuple(bounds), count
        if key not in self._fronts:
            self._fronts[key] = self._solve_front(lead, bounds, count)
        return self._fronts[key]

    def _solve_front(self, lead: str, bounds: Sequence[Constraint], count: int) -> tuple[Solved, ...]:
        cheapest, best = self.solve(bounds, least=lead), self.solve(bounds)
        if cheapest is None or best is None:
            return ()
        low, high = max(cheapest.costs[lead], 1.0), max(best.costs[lead], 1.0)
        found: list[Solved] = []
        for budget in np.geomspace(low, max(high, low), max(count, 1)):
            solved = self.solve((*bounds, Constraint(lead, "<=", math.ceil(budget - 1e-6))))
            if solved is not None and (not found or solved.loss < found[-1].loss):
                found.append(solved)
        return tuple(found)


class _Program:
    """The mixed-integer program of a library."""

    def __init__(self, tables: Mapping[str, _Table], choices: Mapping[str, Sequence[Scalar]]):
        from scipy.optimize import LinearConstraint
        from scipy.sparse import csr_array

        self._values = [(name, value) for name, values in choices.items() for value in values]
        place = {one: index for index, one in enumerate(self._values)}
        self._entries = [entry for table in tables.values() for entry in table.entries]
        rows: list[int] = []
        columns: list[int] = []
        ones: list[float] = []
        lows: list[float] = []
        highs: list[float] = []

        def row(plus: Iterable[int], minus: Iterable[int], low: float, high: float) -> None:
            """Add: the sum of columns `plus`, less that of `minus`, is within `low` and `high`."""
            for columns_of, one in ((plus, 1.0), (minus, -1.0)):
                for column in columns_of:
                    rows.append(len(lows))
                    columns.append(column)
                    ones.append(one)
            lows.append(low)
            highs.append(high)

        for name, values in choices.items():
            row([place[name, value] for value in values], (), 1.0, 1.0)
        first = len(self._values)
        for table in tables.values():
            numbered = list(enumerate(table.entries, first))
            row([column for column, _ in numbered], (), 1.0, 1.0)
            for name in table.choices:
                alike: dict[tuple[Scalar, ...], list[int]] = {}
                for column, entry in numbered:
                    if name in entry.values:
                        alike.setdefault(entry.values[name], []).append(column)
                for several, members in alike.items():
                    row(members, [place[name, value] for value in several], -np.inf, 0.0)
            first += len(table.entries)
        self._size = first
        matrix = csr_array((ones, (rows, columns)), shape=(len(lows), first))
        self._choosing = LinearConstraint(matrix, lows, highs)

    def solve(self, bounds: Mapping[Constraint, float], least: str | None) -> dict[str, Scalar] | None:
        """Return the best assignment within `bounds`, each at its number; None where there is none."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        objective = self._row([entry.loss if least is None else entry.costs[least] for entry in self._entries])
        constraints = [self._choosing]
        for bound, number in bounds.items():
            scale = _BUDGET_SCALE / max(abs(number), 1.0)
            row = self._row([entry.costs[bound.name] for entry in self._entries]) * scale
            upper, lower = (number * scale, -np.inf) if bound.operator == "<=" else (np.inf, number * scale)
            constraints.append(LinearConstraint(row[None, :], lower, upper))
        integral = np.zeros(self._size)
        integral[: len(self._values)] = 1  # whole choices leave each block one entry
        solution = milp(
            objective * (_LOSS_SCALE / max(float(np.abs(objective).max()), 1e-300)),
            integrality=integral,
            bounds=Bounds(0.0, 1.0),
            constraints=constraints,
            options={"mip_rel_gap": _GAP},
        )
        if solution.x is None:
            return None
        taken = zip(self._values, solution.x, strict=False)
        return {name: value for (name, value), one in taken if one > 0.5}

    def _row(self, of_entries: Sequence[float]) -> np.ndarray:
        return np.concatenate([np.zeros(len(self._values)), np.asarray(of_entries, dtype=float)])
