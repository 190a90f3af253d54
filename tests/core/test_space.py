import itertools
from graphlib import CycleError

import numpy as np
import pytest

from kdnas.core.space import Choice, Condition, SearchSpace, in_order

SPACE = SearchSpace(
    name="s",
    family="f",
    choices=(
        Choice("depth", (0, 1, 2)),
        Choice("width", (8, 16, 24, 32)),
        Choice("kernel", (3, 5)),
        Choice("gate", (False, True)),
        Choice("ratio", ("plain", 0.5)),
    ),
    # kernel hangs on width, width on depth: switching depth off switches both off
    conditions=(Condition("width", "depth", (1, 2)), Condition("kernel", "width", (16, 32))),
    fixed={"stride": 2},
)


def test_active_follows_chains_of_conditions_and_adds_fixed_choices():
    full = {"depth": 1, "width": 16, "kernel": 5, "gate": True, "ratio": 0.5}
    assert SPACE.active(full) == {**full, "stride": 2}
    assert SPACE.active({**full, "width": 8}).keys() == {"depth", "width", "gate", "ratio", "stride"}
    assert SPACE.active({**full, "depth": 0}).keys() == {"depth", "gate", "ratio", "stride"}


def test_count_equals_brute_force_and_a_hand_count():
    spellings = {tuple(sorted(SPACE.active(a).items(), key=str)) for a in SPACE.enumerate()}
    # depth 0: 1; depth 1 or 2: widths 8, 24 without kernel, 16, 32 with two kernels = 6 each; times 2 x 2 free choices
    assert SPACE.count() == len(spellings) == (1 + 2 * 6) * 4
    assert SPACE.assignments == 3 * 4 * 2 * 2 * 2 == len(list(SPACE.enumerate()))


def test_a_condition_on_a_fixed_choice_counts():
    choices = (Choice("a", (1, 2)), Choice("b", (1, 2, 3)))
    off = SearchSpace("s", "f", choices, (Condition("a", "mode", ("on",)),), fixed={"mode": "off"})
    on = SearchSpace("s", "f", choices, (Condition("a", "mode", ("on",)),), fixed={"mode": "on"})
    assert (off.count(), on.count()) == (3, 6)


@pytest.mark.parametrize(
    ("values", "step"),
    [((1, 2, 3), 1), ((8, 16, 24), 8), ((3, 5, 9), None), ((3, 2, 1), None), ((True, False), None), ((5,), None),
     ((0.5, 1.5), None), (("a", "b"), None)],
)  # fmt: skip
def test_step_is_that_of_evenly_spaced_ascending_integers(values, step):
    assert Choice("c", values).step == step


def test_random_is_seeded_and_uniform_over_every_choice():
    draws = [SPACE.random(np.random.default_rng(seed)) for seed in (3, 3)]
    assert draws[0] == draws[1]
    rng = np.random.default_rng(0)
    widths = [SPACE.random(rng)["width"] for _ in range(4000)]
    counts = np.array([widths.count(value) for value in (8, 16, 24, 32)])
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize("changes", [1, 2, 5, 9])
def test_mutate_changes_exactly_so_many_choices_within_their_domains(changes):
    rng = np.random.default_rng(1)
    domains = {choice.name: choice.values for choice in SPACE.choices}
    for _ in range(50):
        before = SPACE.random(rng)
        kept = dict(before)
        after = SPACE.mutate(before, rng, changes)
        assert before == kept
        assert sum(before[name] != after[name] for name in before) == min(changes, 5)
        assert all(after[name] in domains[name] for name in after)


def test_enumerate_has_a_fixed_order():
    first = list(itertools.islice(SPACE.enumerate(), 2))
    assert first[0] == {"depth": 0, "width": 8, "kernel": 3, "gate": False, "ratio": "plain"}
    assert first[1] == {**first[0], "ratio": 0.5}


def test_conditions_are_met_in_the_order_in_which_they_hang_on_each_other():
    chain = [Condition("c", "b", (1,)), Condition("a", "z", (1,)), Condition("b", "a", (1,))]
    assert [condition.choice for condition in in_order(chain)] == ["a", "b", "c"]
    with pytest.raises(CycleError) as caught:
        in_order([*chain, Condition("a", "c", (1,))])
    first, *rest = caught.value.args[1]
    assert (first, set(rest)) == (rest[-1], {"a", "b", "c"})


def test_corners_and_neighbours_differ_as_they_say():
    first, last = SPACE.corners
    assert first == next(SPACE.enumerate())
    assert last == list(SPACE.enumerate())[-1]
    others = list(SPACE.neighbours(last))
    assert len(others) == sum(len(choice.values) - 1 for choice in SPACE.choices)
    assert all([name for name in last if other[name] != last[name]] == [changed] for changed, other in others)
