"""The students that a block library predicts to be best, against every student of a small space looked at."""

import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from kdnas.core.block_library import BlockLibrary, Entry
from kdnas.core.objective import Constraint


def library_of(seed=0, shared=(8, 16), options=(1, 2, 3), depth=(1, 2, 3)):
    """Three blocks of random losses: two may be left out by `depth`, all are ruled by a shared width."""
    draws = np.random.default_rng(seed)
    entries = [Entry("", {"width": (w,)}, 1 / w, 0.0, {"macs": 1000.0 * w, "params": 10.0 * w}) for w in shared]
    for width, block in itertools.product(shared, range(3)):
        ruled = {"width": (width,)}
        if block:
            gone = {**ruled, "depth": tuple(v for v in depth if v <= block)}
            entries.append(Entry(f"b{block}", gone, float(draws.uniform(0, 2)), 0.5, {"macs": 0.0, "params": 0.0}))
            ruled["depth"] = tuple(v for v in depth if v > block)
        for option in options:
            costs = {"macs": float(draws.integers(50, 99) * option * width), "params": float(option * width)}
            values = {**ruled, f"inner{block}": (option,)}
            entries.append(Entry(f"b{block}", values, float(draws.normal(1, 0.5) / option), 0.1, costs))
    return BlockLibrary(entries)


def students_of(library):
    """Every assignment with its loss and costs, by adding up in the plainest way."""
    for values in itertools.product(*library.choices.values()):
        assignment = dict(zip(library.choices, values, strict=True))
        chosen = [e for e in library.entries if all(assignment[n] in several for n, several in e.values.items())]
        assert len({e.block for e in chosen}) == len(chosen) == 4
        costs = {name: sum(e.costs[name] for e in chosen) for name in ("macs", "params")}
        yield assignment, sum(e.loss for e in chosen), costs


@pytest.mark.parametrize("seed", range(4))
def test_the_solution_is_the_best_of_all_students_within_the_bounds(seed):
    library = library_of(seed)
    students = list(students_of(library))
    macs = sorted(costs["macs"] for _, _, costs in students)
    for place in (0, 3, len(macs) // 3, len(macs) // 2, -1):
        bounds = [Constraint("macs", "<=", macs[place]), Constraint("params", ">=", 100.0)]
        fit = [loss for _, loss, costs in students if all(b.violation(costs[b.name]) <= 0 for b in bounds)]
        solved = library.solve(bounds)
        if not fit:
            assert solved is None
            continue
        assert solved.loss == pytest.approx(min(fit), abs=1e-5)
        assert all(bound.violation(solved.costs[bound.name]) <= 0 for bound in bounds)


def test_the_cheapest_student_and_none_within_less_than_it():
    library = library_of()
    least = min(costs["macs"] for _, _, costs in students_of(library))
    assert library.solve(least="macs").costs["macs"] == least
    assert library.solve([Constraint("macs", "<=", least - 1)]) is None
    assert library.front("macs", [Constraint("macs", "<=", least - 1)]) == ()


def test_every_member_of_the_front_is_beaten_by_no_student():
    library = library_of(2)
    front = library.front("macs", count=8)
    assert len(front) > 2
    for solved in front:
        cheaper = [loss for _, loss, costs in students_of(library) if costs["macs"] <= solved.costs["macs"]]
        assert solved.loss == pytest.approx(min(cheaper), abs=1e-5)
    assert [s.costs["macs"] for s in front] == sorted(s.costs["macs"] for s in front)
    assert [s.loss for s in front] == sorted((s.loss for s in front), reverse=True)


def test_losses_and_costs_add_up_whatever_is_not_active():
    library = library_of()
    for assignment, loss, costs in students_of(library):
        assert library.loss(assignment) == pytest.approx(loss)
        assert library.price(assignment) == costs
        if assignment["depth"] == 1:
            active = {name: value for name, value in assignment.items() if name not in ("inner1", "inner2")}
            assert library.loss(active) == pytest.approx(loss)
    with pytest.raises(KeyError, match="depth 9"):
        library.loss({"depth": 9})


def test_entries_survive_a_file_and_are_refused_where_they_are_no_library():
    library = library_of()
    plain = json.loads(json.dumps([asdict(entry) for entry in library.entries]))
    assert BlockLibrary(map(Entry.from_dict, plain)).entries == library.entries
    with pytest.raises(ValueError, match="no entry, or two"):
        BlockLibrary(library.entries[:-1])
    with pytest.raises(ValueError, match="no number"):
        Entry.from_dict({**plain[0], "loss": float("nan")})
    with pytest.raises(ValueError, match="without entries"):
        BlockLibrary([])
    twice = [*library.entries, replace(library.entries[-1])]
    with pytest.raises(ValueError, match="b2 has no entry, or two"):
        BlockLibrary(twice)
