"""Welch's t-test against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdnas.core.comparison import student_p_value, welch_p_value


def test_the_p_value_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a = rng.normal(0, rng.uniform(0.1, 2), rng.integers(2, 8))
        b = rng.normal(rng.uniform(-2, 2), rng.uniform(0.1, 2), rng.integers(2, 8))
        assert welch_p_value(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-7)


@pytest.mark.parametrize("freedom", [0.5, 1, 2.3, 7, 300])
def test_students_distribution_is_scipys(freedom):
    for t in (0.0, 1e-6, 0.3, 1, 4.3, 60, -2):
        assert student_p_value(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-7)


def test_single_values_cannot_be_compared():
    assert welch_p_value([0.9], [0.8, 0.9]) is None
    assert welch_p_value([], []) is None


def test_repeats_without_any_spread():
    assert welch_p_value([0.9, 0.9], [0.9, 0.9]) == 1.0
    assert welch_p_value([0.9, 0.9], [0.8, 0.8]) == 0.0
