import math

import numpy as np
import pytest

from kdnas.core.interval import mean_ci95, pooled_ci95

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("n", [2, 3, 5, 10, 31, 32, 60, 200])
def test_agrees_with_scipy(n):
    values = np.random.default_rng(n).normal(0.9, 0.02, n).tolist()
    mean, half = mean_ci95(values)
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    assert mean == pytest.approx(np.mean(values))
    assert half == pytest.approx((high - low) / 2, rel=1e-4)


def test_one_value_has_no_interval_and_none_is_an_error():
    assert mean_ci95([0.5]) == (0.5, None)
    assert mean_ci95([0.5, 0.5, 0.5]) == (0.5, 0.0)
    assert math.isclose(mean_ci95([0.1] * 3)[0], 0.1)
    with pytest.raises(ValueError, match="no values"):
        mean_ci95([])


def test_the_pooled_interval_is_that_of_a_one_way_layout():
    rng = np.random.default_rng(0)
    groups = [rng.normal(k, 0.1, n).tolist() for k, n in enumerate((1, 2, 2, 3, 5))]
    freedom = sum(len(values) - 1 for values in groups)
    spread = math.sqrt(sum((len(v) - 1) * np.var(v, ddof=1) for v in groups if len(v) > 1) / freedom)
    expected = [stats.t.ppf(0.975, freedom) * spread / math.sqrt(len(values)) for values in groups]
    assert pooled_ci95(groups) == pytest.approx(expected, rel=1e-4)
    assert pooled_ci95([groups[4]])[0] == pytest.approx(mean_ci95(groups[4])[1])


def test_single_values_cannot_be_pooled():
    assert pooled_ci95([[0.5], [0.7]]) == [None, None]
    assert pooled_ci95([]) == []
