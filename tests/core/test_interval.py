import math

import numpy as np
import pytest

from kdnas.core.interval import mean_ci95

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
