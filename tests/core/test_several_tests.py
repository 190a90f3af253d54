"""Tests of pairs, and of many at once, against scipy and statsmodels' definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdnas.core.comparison import holm, paired_p_value


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_pairs_are_tested_as_scipy_does(count: int) -> None:
    rng = np.random.default_rng(count)
    a, b = rng.normal(0.3, 1, count), rng.normal(0, 1, count)
    assert paired_p_value(list(a), list(b)) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_one_pair_tells_nothing_and_equal_ones_no_difference() -> None:
    assert paired_p_value([1.0], [2.0]) is None
    assert paired_p_value([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert paired_p_value([1.5, 2.5], [1.0, 2.0]) == 0.0


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_keeps_the_rate_of_mistakes_of_a_family() -> None:
    """Of families of ten tests of nothing, at most about 5 % have one below 0.05."""
    rng = np.random.default_rng(0)
    families = [holm(list(rng.uniform(size=10))) for _ in range(2000)]
    assert np.mean([min(family) < 0.05 for family in families]) < 0.065
