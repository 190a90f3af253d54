"""Which students are retrained. Trials are synthetic; expected choices are worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

from synthetic_run import complete, run_of

from kdnas.controller.retraining import finalists


def numbers(run, most):
    final = run.config.final.model_copy(update={"max_students": most})
    return [t.number for t in finalists(replace(run, config=run.config.model_copy(update={"final": final})))]


def test_a_front_that_fits_is_taken_whole_in_trial_order():
    run = run_of([complete(0, 0.9, 50), complete(1, 0.8, 20), complete(2, 0.7, 30), complete(3, 0.95, 90)])
    assert numbers(run, 3) == [0, 1, 3]


def test_of_a_large_front_the_largest_contributions_stay():
    # Beside the best, 2: 0 adds ln(1.005 / 0.205) * ln 4.5, 1 adds ln(1.005 / 0.195) * ln 1.64.
    run = run_of([complete(0, 0.8, 20), complete(1, 0.81, 55), complete(2, 0.9, 90)])
    assert numbers(run, 2) == [0, 2]


def test_the_most_accurate_student_stays_though_it_costs_as_much_as_the_reference():
    run = run_of([complete(0, 0.5, 10), complete(1, 0.51, 12), complete(2, 0.9, 100)])
    assert numbers(run, 2) == [0, 2]
    beyond = run_of([complete(0, 0.5, 10), complete(1, 0.51, 12), complete(2, 0.9, 170)])
    assert numbers(beyond, 2) == [
        0,
        2,
    ]  # beside 2: 0 adds ln(1.005 / 0.505) * ln 17, 1 adds ln(1.005 / 0.495) * ln 14.2


def test_a_student_with_a_third_of_anothers_errors_goes_before_a_cheaper_one_near_chance():
    """Beside 97.8 % at 135 and 85.9 % at 47, 95.6 % at 68 and not 55.6 % at 34: so were those of spoken digits."""
    points = [(0.556, 34), (0.859, 47), (0.956, 68), (0.978, 135)]
    trials = [complete(number, score, macs) for number, (score, macs) in enumerate(points)]
    run = replace(run_of(trials), reference_point={"accuracy": 0.1, "macs": 300.0})
    assert numbers(run, 3) == [1, 2, 3]


def test_students_at_chance_come_last_and_the_more_accurate_first():
    run = replace(
        run_of([complete(0, 0.05, 10), complete(1, 0.08, 20), complete(2, 0.1, 30)]),
        reference_point={"accuracy": 0.1, "macs": 100.0},
    )
    assert numbers(run, 1) == [2]


def test_what_breaks_a_bound_or_is_not_known_is_no_finalist():
    trials = [
        complete(0, 0.9, 50, latency_ms=3.0),
        complete(1, 0.8, 50, latency_ms=1.0),
        complete(2, 0.95, 40, latency_ms=math.nan),
        complete(3, math.nan, 5, latency_ms=1.0),
    ]
    assert numbers(run_of(trials, constraints=["latency_ms<=2"]), 8) == [1]
    assert numbers(run_of([]), 8) == []


def test_a_lower_bound_holds_too():
    trials = [complete(0, 0.9, 50), complete(1, 0.8, 20)]
    assert numbers(run_of(trials, constraints=["macs>=30"]), 8) == [0]


def test_the_best_score_stays_however_little_it_adds():
    many = [complete(number, 0.5 + 0.04 * number, 10 * 2**number) for number in range(8)]
    run = run_of([*many, complete(8, 0.7801, 1281)])
    for most in range(1, 9):
        assert 8 in numbers(run, most)


def test_cheap_students_count_by_the_logarithm_of_their_cost():
    # Alike in what they add by the logarithm; on a linear axis the first ones add next to nothing.
    run = run_of([complete(number, 0.3 + 0.1 * number, 1e6 * 10**number) for number in range(5)])
    assert numbers(run, 3)[-1] == 4
    assert numbers(run, 3)[0] <= 1
