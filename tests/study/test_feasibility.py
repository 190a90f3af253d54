"""Known before any training: which students can meet the constraints, and the reference point."""

from __future__ import annotations

import pytest

from kdnas.core.arch import Arch
from kdnas.core.objective import parse_constraint
from kdnas.core.space import Choice, SearchSpace
from kdnas.errors import ConfigError
from kdnas.study.feasibility import reference_costs, sample_prices

SPACE = SearchSpace("s", "f", tuple(Choice(f"w{i}", tuple(range(1, 11))) for i in range(8)))


def arch_of(assignment):
    return Arch.of("f", assignment)


def price(arch):
    """From 8 to 80, and 8 only for the one arch that is 1 everywhere."""
    return {"macs": float(sum(arch.choices.values()))}


def priced(*bounds):
    return sample_prices(SPACE, arch_of, price, constraints=tuple(map(parse_constraint, bounds)), seed=0)


def test_the_sample_is_seeded():
    assert [c.arch for c in priced()] == [c.arch for c in priced()]


def test_a_needle_is_found_by_descent():
    # One assignment in 10^8 has 8: two thousand random draws do not meet it.
    sample = priced("macs<=8")
    assert min(candidate.costs["macs"] for candidate in sample) == 8


def test_an_unmeetable_constraint_names_the_nearest_miss():
    expected = r"no student of space 's' meets macs<=7; the nearest miss breaks macs<=7 \(macs is 8\) "
    with pytest.raises(ConfigError, match=expected):
        priced("macs<=7")


def test_reference_costs_take_the_bound_then_the_sample_then_the_teacher():
    sample = priced()
    largest = max(candidate.costs["macs"] for candidate in sample)
    teacher = {"macs": 1000.0, "latency_ms": 7.0}
    bound = (parse_constraint("macs<=50"),)
    assert reference_costs(sample, (), teacher, ["macs", "latency_ms"]) == {"macs": largest, "latency_ms": 7.0}
    assert reference_costs(sample, bound, teacher, ["macs"]) == {"macs": 50.0}


def test_each_student_is_priced_once_however_often_it_is_drawn():
    asked = []

    def counting(arch):
        asked.append(arch)
        return price(arch)

    small = SearchSpace("s", "f", (Choice("w0", (1, 2, 3)), Choice("w1", (1, 2))))
    sample = sample_prices(small, arch_of, counting, constraints=(), seed=0)
    assert len(sample) > len(asked) == 6
    assert all(candidate.costs == price(candidate.arch) for candidate in sample)
