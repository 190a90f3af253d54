from __future__ import annotations

import pytest

from kdnas.report.wording import axis_title, duration, fraction_of, shown, shown_interval


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.98125, "98.12 %"),
        ("macs", 40_813_184, "40.81 M"),
        ("params", 950, "950"),
        ("latency_ms", 1.23456, "1.235 ms"),
        ("peak_memory_bytes", 2_500_000, "2.5 MB"),
        ("peak_memory_bytes", 12, "12 B"),
        ("size_bytes", 21_328, "21.33 kB"),
        ("size_bytes", 999_960, "1 MB"),  # rounding crosses the prefix
        ("energy_mj", 3, "3 mJ"),
        ("macs", None, "–"),
        ("accuracy", float("nan"), "–"),
    ],
)
def test_values_carry_their_unit(name, value, text):
    assert shown(name, value) == text


def test_intervals():
    assert shown_interval("accuracy", 0.971, 0.0031) == "97.10 ± 0.31 %"
    assert shown_interval("accuracy", 0.971, None) == "97.10 %"


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
