import math

import numpy as np
import pytest

from kdnas.core.objective import ACCURACY, PERPLEXITY, Constraint, Quantity, minimised, parse_constraint

MACS = Quantity("macs", "MACs", "minimize", "cheap")


@pytest.mark.parametrize(
    ("text", "name", "operator", "bound"),
    [
        ("macs<=10e6", "macs", "<=", 10e6),
        ("macs <= 10M", "macs", "<=", 10e6),
        ("params<=2.5k", "params", "<=", 2500.0),
        (" peak_memory_bytes<=1G ", "peak_memory_bytes", "<=", 1e9),
        ("accuracy>=0.9", "accuracy", ">=", 0.9),
    ],
)
def test_bounds_are_parsed(text, name, operator, bound):
    assert parse_constraint(text, ACCURACY) == Constraint(name, operator, bound)


@pytest.mark.parametrize(
    "text",
    ["macs<10", "macs", "<=3", "macs<=", "macs<=abc", "macs<=1e999", "Macs<=1", "macs<=1T", "macs==1", "macs<=1 2"],
)
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(ValueError, match="is not a bound"):
        parse_constraint(text, ACCURACY)


@pytest.mark.parametrize(
    ("text", "score", "what"),
    [
        ("perplexity<=-3", PERPLEXITY, "perplexity is never below 1"),
        ("perplexity>=0.5", PERPLEXITY, "perplexity is never below 1"),
        ("perplexity<=-5%", PERPLEXITY, "perplexity is never below 0"),
        ("accuracy>=1.2", ACCURACY, "accuracy is a fraction"),
        ("accuracy>=-1%", ACCURACY, "accuracy is a fraction"),
    ],
)
def test_what_a_score_never_is_bounds_nothing(text, score, what):
    with pytest.raises(ValueError, match=what):
        parse_constraint(text, score)
    assert parse_constraint("perplexity<=1", PERPLEXITY).bound == 1
    assert parse_constraint("perplexity<=110%", PERPLEXITY).percent


def test_violation_is_positive_on_the_wrong_side_only():
    at_most, at_least = parse_constraint("macs<=10"), parse_constraint("accuracy>=0.5", ACCURACY)
    assert [at_most.violation(value) for value in (8, 10, 13)] == [-2, 0, 3]
    assert [at_least.violation(value) for value in (0.25, 0.5, 1.0)] == [0.25, 0.0, -0.5]


def test_text_round_trip():
    assert parse_constraint(str(parse_constraint("macs<=12.5M"))) == parse_constraint("macs<=12.5M")


def test_minimised_flips_what_is_maximised():
    rows = [{"accuracy": 0.9, "macs": 5}, {"accuracy": 0.8, "macs": 3}]
    assert minimised(rows, [ACCURACY, MACS]).tolist() == [[-0.9, 5.0], [-0.8, 3.0]]
    assert minimised([], [ACCURACY, MACS]).shape == (0, 2)
    assert minimised(rows, [MACS]).dtype == np.float64


def test_a_score_as_a_share_is_better_the_larger_it_is():
    assert ACCURACY.as_share(0.7) == ACCURACY.from_share(0.7) == 0.7
    assert PERPLEXITY.as_share(20.0) == pytest.approx(math.exp(-math.log(20.0)))  # the mean probability of a token
    assert PERPLEXITY.as_share(20.0) > PERPLEXITY.as_share(21.0)
    assert PERPLEXITY.from_share(PERPLEXITY.as_share(20.0)) == pytest.approx(20.0)
    assert PERPLEXITY.from_share(PERPLEXITY.as_share(math.inf)) == math.inf
