from __future__ import annotations

import dataclasses

import pytest

from kdnas.core.objective import ACCURACY, PERPLEXITY, parse_constraint
from kdnas.report.wording import (
    axis_title,
    bound_in_words,
    column_title,
    duration,
    fraction_of,
    reason_in_words,
    shown,
    shown_interval,
)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (ACCURACY, 0.98125, "98.12 %"),
        (PERPLEXITY, 23.41837, "23.42"),
        (PERPLEXITY, 50_257.3, "50,257"),
        ("macs", 40_813_184, "40.81 M"),
        ("params", 950, "950"),
        ("latency_ms", 1.23456, "1.235 ms"),
        ("peak_memory_bytes", 2_500_000, "2.5 MB"),
        ("peak_memory_bytes", 12, "12 B"),
        ("size_bytes", 21_328, "21.33 kB"),
        ("size_bytes", 999_960, "1 MB"),  # rounding crosses the prefix
        ("energy_mj", 3, "3 mJ"),
        ("macs", None, "–"),
        (ACCURACY, float("nan"), "–"),
    ],
)
def test_values_carry_their_unit(name, value, text):
    assert shown(name, value) == text


def test_scores_of_tasks_and_of_a_task_of_the_users_own_are_shown_as_the_score_is():
    own = dataclasses.replace(ACCURACY, name="iou")
    assert shown("digit.accuracy", 0.33) == shown("digit.accuracy", 0.33, ACCURACY) == "33.00 %"
    assert (shown("iou", 0.5, own), shown("road.iou", 0.5, own)) == ("50.00 %", "50.00 %")
    assert shown("macs", 5e6, own) == "5 M"


def test_intervals():
    assert shown_interval(ACCURACY, 0.971, 0.0031) == "97.10 ± 0.31 %"
    assert shown_interval(ACCURACY, 0.971, None) == "97.10 %"
    assert shown_interval(PERPLEXITY, 23.418, 0.8231) == "23.42 ± 0.82"
    assert shown_interval(PERPLEXITY, 1.5, 3.0) == "1.5 ± 3"
    assert shown_interval(ACCURACY, 0.971, 0.0) == "97.10 %, every seed"
    assert shown_interval(ACCURACY, 0.971, 2e-5) == "97.10 ± 0.01 %"


@pytest.mark.parametrize(
    ("value", "whole", "text"),
    [(1, 12, "1/12"), (1, 3.4, "1/3.4"), (83, 100, "83 %"), (160, 100, "1.6 times"), (0, 1, "–")],
)
def test_fractions(value, whole, text):
    assert fraction_of(value, whole) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.21, "4.2 s"), (41, "41 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_flops_are_labelled_as_twice_the_macs():
    assert axis_title("macs") == "MACs (FLOPs = 2 × MACs)"
    assert axis_title("latency_ms") == "Latency (ms)"


def test_intervals_stop_at_nothing_and_everything():
    assert shown_interval(ACCURACY, 0.972, 0.109) == "97.20 % [86.30, 100]"
    assert shown_interval(ACCURACY, 0.1, 0.3185) == "10.00 % [0, 41.85]"
    assert shown_interval(ACCURACY, 0.5, 0.9) == "50.00 % [0, 100]"


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        ("macs<=6e6", "at most 6 M MACs"),
        ("macs<=1234567", "at most 1.23457 M MACs"),
        ("params<=950", "at most 950 parameters"),
        ("accuracy>=0.95", "at least 95 % accuracy"),
        ("latency_ms<=2.5", "at most 2.5 ms latency"),
        ("macs<=5%", "at most 5 % of the teacher’s MACs"),
        ("peak_memory_bytes<=3M", "at most 3 MB peak memory"),
    ],
)
def test_bounds_in_words(bound, text):
    constraint = parse_constraint(bound, ACCURACY)
    assert bound_in_words(constraint, ACCURACY) == text
    assert reason_in_words(f"breaks {constraint}", ACCURACY) == f"breaks {text}"


def test_a_bound_on_a_perplexity_is_a_plain_number():
    assert bound_in_words(parse_constraint("perplexity<=20.5", PERPLEXITY), PERPLEXITY) == "at most 20.5 perplexity"


def test_a_reason_without_a_bound_stays_as_it_is():
    assert reason_in_words("a<=b and x <= 3 crashed", ACCURACY) == "a<=b and x <= 3 crashed"


def test_columns_have_their_unit():
    assert [column_title(name) for name in ("latency_ms", "macs", "energy_mj")] == [
        "latency (ms)", "MACs", "energy (mJ)",
    ]  # fmt: skip
    assert column_title("test_accuracy", ACCURACY) == "test accuracy (%)"
    assert column_title("perplexity", PERPLEXITY) == "perplexity"
