"""Promotion rules: against brute force, moocore-free counts and cases worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kdnas.core.hypervolume import hypervolume
from kdnas.core.promotion import Rung, fronts, lifted, promotable

NAN = float("nan")
REFERENCE = np.array([0.0, 10.0])


def rung(values, above=None, running=(), rungs_above=1):
    """Return a rung of (-accuracy, cost) rows; `above` maps students to their score at the next rung."""
    values = np.array(values, dtype=float)
    scores = np.full(values.shape, NAN)
    for index, score in (above or {}).items():
        scores[index] = NAN if score is None else score
    started = [index in (above or {}) or index in running for index in range(len(values))]
    busy = [index in running for index in range(len(values))]
    return Rung(values, scores, np.array(started, dtype=bool), np.array(busy, dtype=bool), rungs_above)


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def peeled(values):
    """Front numbers by the definition: who is dominated by nobody that is left."""
    left, numbers = set(range(len(values))), {}
    for number in itertools.count():
        if not left:
            return [numbers[index] for index in range(len(values))]
        front = {i for i in left if not any(dominates(values[j], values[i]) for j in left)}
        numbers |= dict.fromkeys(front, number)
        left -= front


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_fronts_are_those_of_the_definition(objectives):
    values = np.random.default_rng(objectives).integers(0, 6, size=(40, objectives)).astype(float)
    assert fronts(values).tolist() == peeled(values.tolist())


def test_fronts_stop_once_enough_are_known():
    values = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    assert fronts(values, 1).tolist() == [0, -1, -1]
    assert fronts(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("rule", ["rank", "moasha", "halving"])
def test_nobody_is_promoted_of_too_few(rule):
    assert promotable(rule, rung([[-0.5, 1], [-0.6, 2]]), eta=3, reference=REFERENCE) == []
    assert promotable(rule, rung(np.empty((0, 2))), eta=3, reference=REFERENCE) == []


@pytest.mark.parametrize("rule", ["rank", "moasha", "halving"])
def test_never_more_than_one_in_eta_and_nobody_twice(rule):
    rng = np.random.default_rng(0)
    values = np.column_stack([-rng.random(30), 10 * rng.random(30)])
    first = promotable(rule, rung(values), eta=3, reference=REFERENCE)
    assert 0 < len(first) <= 10
    rest = promotable(rule, rung(values, above={first[0]: None}), eta=3, reference=REFERENCE)
    assert first[0] not in rest
    assert len(rest) <= 9


def test_the_next_is_who_adds_most_hypervolume_above():
    values = [[-0.5, 1], [-0.7, 4], [-0.9, 9], [-0.4, 5], [-0.3, 6], [-0.2, 7]]
    order = promotable("rank", rung(values), eta=2, reference=REFERENCE)
    # Alone: 0.5 * 9 = 4.5, 0.7 * 6 = 4.2, 0.9 * 1 = 0.9.
    assert order == [0, 1, 2]
    # With student 0 there at 0.5: student 1 adds 0.2 * 6 = 1.2, student 2 adds 0.4 * 1.
    assert promotable("rank", rung(values, above={0: [-0.5, 1]}), eta=2, reference=REFERENCE) == [1, 2]
    # While it is still running it is believed to score what is predicted.
    assert promotable("rank", rung(values, running=[0]), eta=2, reference=REFERENCE) == [1, 2]


def test_the_gain_is_that_of_brute_force():
    rng = np.random.default_rng(3)
    values = np.column_stack([-rng.random(24), 10 * rng.random(24)])
    change = np.array([-0.1, 0.0])
    above = {index: values[index] + change for index in (0, 5, 7)}
    ladder = rung(values, above=above)
    shifted = values + change
    there = np.array(list(above.values()))
    gains = [hypervolume(np.vstack([there, row]), REFERENCE) - hypervolume(there, REFERENCE) for row in shifted]
    order = promotable("rank", ladder, eta=1.5, reference=REFERENCE)
    assert [gains[index] for index in order] == sorted((gains[index] for index in order), reverse=True)
    standing = [i for i in range(24) if fronts(values, 16)[i] >= 0 and i not in above and gains[i] > 1e-12]
    assert set(order) == set(sorted(standing, key=lambda i: -gains[i])[:13])


def test_who_is_beaten_by_a_cheaper_student_above_is_not_promoted():
    # Both are on the first front below; above, the cheaper student 0 has got better than 1 is predicted to.
    values = [[-0.5, 1], [-0.6, 4], [-0.1, 8], [-0.1, 9], [-0.05, 9], [-0.05, 9.5]]
    above = {0: [-0.8, 1], 2: [-0.1, 8]}  # changes of 0.3 and 0: 0.75 is predicted of student 1
    assert promotable("rank", rung(values, above=above), eta=2, reference=REFERENCE) == []
    above[0] = [-0.5, 1]
    assert promotable("rank", rung(values, above=above), eta=2, reference=REFERENCE) == [1]


def test_students_below_the_reference_point_still_compare():
    values = [[0.3, 4], [0.2, 5], [0.5, 9], [0.6, 9.5]]  # none is better than chance
    assert promotable("rank", rung(values), eta=2, reference=REFERENCE) != []


def test_only_the_first_fronts_stand_for_promotion():
    # Two of four: the second front holds the second place, and all of its members stand for it.
    values = [[-0.9, 2], [-0.8, 3], [-0.7, 2.5], [-0.1, 9]]
    assert fronts(np.array(values)).tolist() == [0, 1, 1, 2]
    above = {0: [-0.3, 2]}  # the front's only member fell by 0.6: 0.2 and 0.1 are expected of the next two
    assert promotable("rank", rung(values, above=above), eta=2, reference=REFERENCE) == []
    assert promotable("rank", rung(values, above={0: [-0.9, 2]}, running=[1]), eta=2, reference=REFERENCE) == []
    values[2] = [-0.7, 1.5]  # on the first front
    assert promotable("rank", rung(values, above={0: [-0.9, 2]}), eta=2, reference=REFERENCE) == [2]


def test_moasha_spreads_over_the_front():
    front = [[-1.0, 10], [-0.9, 9], [-0.95, 9.5], [0.0, 0], [-0.5, 5]]
    # First the most accurate, then the farthest from it, then the one in the middle.
    assert promotable("moasha", rung(front), eta=5 / 3, reference=REFERENCE) == [0, 3, 4]


@pytest.mark.parametrize("rule", ["rank", "moasha", "halving"])
def test_once_no_new_student_can_be_had_nobody_is_refused(rule):
    rng = np.random.default_rng(1)
    values = np.column_stack([-rng.random(20), 10 * rng.random(20)])
    ladder = rung(values, above={3: values[3], 4: None})
    order = promotable(rule, ladder, eta=3, reference=REFERENCE, call="all")
    assert sorted(order) == [index for index in range(20) if index not in (3, 4)]
    assert order[0] == np.argmin(values[:, 0])
    order = order[1:]
    ranks = fronts(values)[order]
    if rule == "moasha":
        assert (np.diff(ranks) >= 0).all()
    elif rule == "halving":
        assert (np.diff(values[order, 0]) >= 0).all()
    else:
        gainful = promotable(rule, ladder, eta=1.01, reference=REFERENCE)
        assert 0 < len(gainful) <= len(order)
        gainful.remove(int(np.argmin(values[:, 0])))
        assert order[: len(gainful)] == gainful


@pytest.mark.parametrize("rule", ["rank", "moasha", "halving"])
def test_at_the_end_who_may_gain_something_goes_before_the_others(rule):
    # Every share of three is used up; student 5 came last and is the best, 3 costs more than what is better.
    values = [[-0.2, 1], [-0.3, 2], [-0.25, 4], [-0.1, 6], [-0.15, 7], [-0.9, 3]]
    ladder = rung(values, above={0: [-0.2, 1], 1: [-0.3, 2]})
    assert rule != "rank" or promotable(rule, ladder, eta=3, reference=REFERENCE) == []
    gaining = promotable(rule, ladder, eta=3, reference=REFERENCE, call="gain")
    assert gaining[0] == 5
    assert 3 not in gaining
    assert sorted(promotable(rule, ladder, eta=3, reference=REFERENCE, call="all")) == [2, 3, 4, 5]


def test_plain_halving_takes_the_most_accurate_of_each_whole_block():
    accuracy = [0.1, 0.9, 0.3, 0.8, 0.7, 0.6, 0.99]
    values = [[-a, 1.0] for a in accuracy]
    assert promotable("halving", rung(values), eta=3, reference=REFERENCE) == [1, 3]
    assert promotable("halving", rung(values, rungs_above=2), eta=3, reference=REFERENCE) == []
    values += [[-0.2, 1.0], [-0.4, 1.0]]
    assert promotable("halving", rung(values, rungs_above=2), eta=3, reference=REFERENCE) == [6, 1, 3]


def test_scores_are_lifted_by_the_median_change_of_those_that_know_both():
    scores = np.full((5, 3, 2), NAN)
    scores[:, 0] = [[-0.5, 1], [-0.4, 2], [-0.3, 3], [-0.2, 4], [NAN, NAN]]
    scores[:3, 1] = [[-0.6, 1], [-0.6, 2], [-0.6, 3]]  # changes -0.1, -0.2, -0.3: median -0.2
    scores[0, 2] = [-0.7, 1]  # change -0.1
    expected = [[-0.7, 1], [-0.7, 2], [-0.7, 3], [-0.5, 4], [NAN, NAN]]
    np.testing.assert_allclose(lifted(scores), expected)


def test_without_pairs_scores_stay_as_they_are():
    scores = np.array([[[-0.5, 1.0], [NAN, NAN]], [[-0.4, 2.0], [NAN, NAN]]])
    np.testing.assert_array_equal(lifted(scores), scores[:, 0])
