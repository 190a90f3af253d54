"""The rule that picks a route, the chain of assistants, and the space down to a student, against values by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from toy_space import LADDERS, SPACE, macs

from kdnas.core.objective import PERPLEXITY
from kdnas.core.route import (
    ENOUGH_EPOCHS,
    ROUTES,
    RouteInputs,
    Scored,
    choose_assistants,
    choose_route,
    space_down_to,
    space_up_to,
    student_epochs,
    supernet_epochs,
    tuning_epochs,
)
from kdnas.core.shrinking import Ladders
from kdnas.core.space import Condition

STUDENT = Scored("student", 0.60, 1_000)
FRONT = (Scored("small", 0.70, 3_000), Scored("middle", 0.75, 8_000), Scored("large", 0.82, 27_000))
INPUTS = RouteInputs(
    epochs=100, student=STUDENT, teacher_score=0.90, teacher_macs=64_000.0, largest_macs=40_000, front=FRONT
)


def test_a_small_budget_is_spent_directly():
    route, why = choose_route(INPUTS)
    assert route == "direct"
    assert "30.0 points worse than" in why
    assert "1.5 epochs of its largest subnet" in why  # 60 epochs of 1,000 MACs over 40,000


def test_a_student_near_its_teacher_is_trained_directly_whatever_the_budget():
    inputs = replace(INPUTS, epochs=10**6, student=replace(STUDENT, score=0.88))
    route, why = choose_route(inputs)
    assert route == "direct"
    assert "less than 3 points" in why
    route, why = choose_route(replace(INPUTS, student=replace(STUDENT, score=0.91)))
    assert route == "direct"
    assert why.startswith("the student's accuracy is no worse than the teacher's 90.00 %:")


def test_shrink_once_the_supernet_gets_enough():
    enough = next(epochs for epochs in itertools.count(2) if supernet_epochs(replace(INPUTS, epochs=epochs)) >= 30)
    assert 0.6 * enough * 1_000 / 40_000 == pytest.approx(ENOUGH_EPOCHS, rel=0.01)
    far = replace(INPUTS, front=())
    assert choose_route(replace(far, epochs=enough))[0] == "shrink"
    assert choose_route(replace(far, epochs=enough - 1))[0] == "direct"


def test_assistants_where_no_supernet_can_be_afforded_but_each_of_them_can():
    inputs = replace(INPUTS, largest_macs=None)
    assert choose_route(replace(inputs, epochs=300))[0] == "direct"
    route, why = choose_route(replace(inputs, epochs=480))
    assert route == "assistants"  # half of 480 x 1,000 MACs are 30 epochs of 8,000
    assert "64.0 times its MACs" in why
    assert choose_route(replace(inputs, epochs=480, teacher_macs=7_000.0))[0] == "direct"  # no wide gap in size
    assert choose_route(replace(inputs, epochs=480, teacher_macs=None))[0] == "direct"  # not known


def test_every_route_is_named():
    assert ROUTES == ("direct", "shrink", "grow", "assistants", "born_again")


def test_one_assistant_stands_halfway():
    """Of 64 times the MACs: 8,000 is halfway on the logarithm, as 0.75 is in accuracy."""
    (assistant,) = choose_assistants(INPUTS)
    assert assistant.network.arch_id == "middle"
    assert assistant.epochs == 6  # 50 epochs of the student over 8
    assert student_epochs(INPUTS, (assistant,)) == 100 - 48


def test_two_assistants_at_a_third_each_from_the_large_down():
    """A thousand times the MACs are more than 8 x 8; 10 and 100 times stand at the thirds, as 0.7 and 0.8 do."""
    front = (Scored("small", 0.70, 10_000), Scored("middle", 0.75, 30_000), Scored("large", 0.80, 100_000))
    inputs = replace(INPUTS, teacher_macs=1_000_000.0, epochs=1000, front=front)
    chain = choose_assistants(inputs)
    assert [assistant.network.arch_id for assistant in chain] == ["large", "small"]
    assert [assistant.epochs for assistant in chain] == [2, 25]  # 250 epochs of the student each
    assert student_epochs(inputs, chain) == 1000 - 200 - 250


def test_fewer_assistants_where_two_are_too_dear():
    front = (Scored("small", 0.70, 10_000), Scored("middle", 0.75, 30_000), Scored("large", 0.80, 100_000))
    inputs = replace(INPUTS, teacher_macs=1_000_000.0, epochs=100, front=front)
    (only,) = choose_assistants(inputs)
    assert (only.network.arch_id, only.epochs) == ("middle", 1)
    assert choose_assistants(replace(inputs, epochs=10)) == ()


@pytest.mark.parametrize(
    "network",
    [
        Scored("smaller", 0.75, 900),
        Scored("worse", 0.55, 8_000),
        Scored("better than the teacher", 0.95, 8_000),
        Scored("larger than the teacher", 0.75, 70_000),
        Scored("too near", 0.61, 1_100),
    ],
)
def test_no_assistant_that_is_not_between(network):
    assert choose_assistants(replace(INPUTS, front=(network,))) == ()


def test_without_the_teachers_macs_accuracy_decides():
    (assistant,) = choose_assistants(replace(INPUTS, teacher_macs=None))
    assert assistant.network.arch_id == "middle"


def test_the_budget_is_never_exceeded():
    for epochs, times in itertools.product((1, 2, 7, 50, 1000), (2.0, 64.0, 5_000.0)):
        inputs = replace(INPUTS, epochs=epochs, teacher_macs=times * 1_000)
        chain = choose_assistants(inputs)
        left = student_epochs(inputs, chain)
        spent = left * 1_000 + sum(item.epochs * item.network.macs for item in chain)
        assert epochs * 1_000 - 1_000 < spent <= epochs * 1_000
        assert left >= epochs / 2
        assert all(item.epochs >= 1 for item in chain)


def test_tuning_epochs():
    assert [tuning_epochs(epochs) for epochs in (1, 2, 5, 10, 100)] == [1, 1, 2, 4, 40]
    assert supernet_epochs(replace(INPUTS, epochs=1)) == 0.0


CONDITIONAL = replace(
    SPACE, conditions=tuple(Condition(f"stage1.{part}", "stage1.depth", (1, 2)) for part in ("width", "skip"))
)


def test_the_space_ends_with_the_student():
    student = {"stem_width": 4, "stage1.depth": 1, "stage1.width": 4, "stage1.skip": "none"}
    down = space_down_to(CONDITIONAL, LADDERS, student)
    assert {choice.name: choice.values for choice in down.choices} == {
        "stem_width": (8, 4),
        "stage1.depth": (2, 1),
        "stage1.width": (16, 4),
        "stage1.skip": ("projection", "none"),  # "identity" costs what "none" does
    }
    ladders = Ladders.of(down, macs)
    assert ladders.smallest(ladders.values) == student
    assert ladders.largest == LADDERS.largest


def test_choices_that_the_student_does_not_have_stay_at_the_largest():
    student = {"stem_width": 2, "stage1.depth": 0, "stage1.width": 4, "stage1.skip": "none"}
    down = space_down_to(CONDITIONAL, LADDERS, student)
    domains = {choice.name: choice.values for choice in down.choices}
    assert domains["stage1.depth"] == (2, 1, 0)
    assert (domains["stage1.width"], domains["stage1.skip"]) == ((16,), ("projection",))
    assert space_down_to(CONDITIONAL, LADDERS, LADDERS.largest).count() == 1


def test_the_space_to_grow_in_ends_with_the_student():
    student = {"stem_width": 8, "stage1.depth": 1, "stage1.width": 16, "stage1.skip": "none"}
    up = space_up_to(CONDITIONAL, LADDERS, student)
    ladders = Ladders.of(up, macs)
    assert ladders.largest == student
    assert ladders.smallest(ladders.values) == {**student, "stem_width": 2, "stage1.depth": 0, "stage1.width": 4}
    assert space_up_to(CONDITIONAL, LADDERS, LADDERS.smallest(LADDERS.values)).count() == 1


def test_weights_that_are_there_are_used():
    inputs = replace(INPUTS, largest_macs=None, shared_weights=True)
    assert choose_route(inputs)[0] == "shrink"
    assert choose_route(replace(inputs, student=replace(STUDENT, score=0.89)))[0] == "direct"


def test_perplexities_are_told_apart_by_their_logarithms():
    """As the accuracies above, when e to the power of the distance from the teacher's score is the perplexity."""

    def perplexity(network: Scored) -> Scored:
        return replace(network, score=20.0 * math.exp(0.90 - network.score))

    inputs = replace(
        INPUTS, student=perplexity(STUDENT), front=tuple(map(perplexity, FRONT)), teacher_score=20.0, score=PERPLEXITY
    )
    chain = [(item.network.arch_id, item.epochs) for item in choose_assistants(inputs)]
    assert chain == [(item.network.arch_id, item.epochs) for item in choose_assistants(INPUTS)]
    route, why = choose_route(inputs)
    assert route == choose_route(INPUTS)[0]
    assert "the student's perplexity is 7 worse than the teacher's 20" in why
    assert choose_route(replace(inputs, epochs=480, largest_macs=None))[0] == "assistants"
    near = replace(inputs, student=replace(STUDENT, score=20.5))
    assert "less than 3 %" in choose_route(near)[1]
    worse = replace(inputs, front=(Scored("worse", 40.0, 8_000), Scored("better than the teacher", 19.0, 8_000)))
    assert choose_assistants(worse) == ()
