import time

import moocore
import numpy as np
import pytest

from kdnas.core.hypervolume import gain, hypervolume


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_agrees_with_moocore(objectives):
    rng = np.random.default_rng(objectives)
    for size in (1, 5, 30):
        for _ in range(5):
            values = rng.random((size, objectives)) * 1.2  # some points lie beyond the reference
            reference = np.ones(objectives)
            assert hypervolume(values, reference) == pytest.approx(moocore.hypervolume(values, ref=reference), rel=1e-9)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_ties_agree_with_moocore(objectives):
    rng = np.random.default_rng(7)
    for _ in range(10):
        values = rng.integers(0, 4, size=(25, objectives)).astype(float)
        reference = np.full(objectives, 4.0)
        assert hypervolume(values, reference) == pytest.approx(moocore.hypervolume(values, ref=reference))


def test_by_hand():
    assert hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([3.0, 3.0])) == 3.0
    assert hypervolume(np.array([[1.0], [2.0]]), np.array([5.0])) == 4.0
    assert hypervolume(np.array([[0.0, 0.0, 0.0]]), np.array([1.0, 2.0, 3.0])) == 6.0


def test_points_at_or_beyond_the_reference_add_nothing():
    reference = np.array([1.0, 1.0])
    assert hypervolume(np.array([[1.0, 0.0], [2.0, -5.0]]), reference) == 0.0
    assert hypervolume(np.empty((0, 2)), reference) == 0.0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_what_points_add_one_after_the_other_is_the_volume(objectives):
    rng = np.random.default_rng(3)
    for values in (rng.random((40, objectives)) * 1.2, rng.integers(0, 4, size=(40, objectives)) / 4):
        reference = np.ones(objectives)
        gains = [gain(values[:count], values[count], reference) for count in range(len(values))]
        assert min(gains) >= 0
        assert sum(gains) == pytest.approx(moocore.hypervolume(values, ref=reference), rel=1e-9)


def test_a_front_of_thousands_in_three_objectives_takes_no_minutes():
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=(3000, 3)))
    values = 1 - values / np.linalg.norm(values, axis=1, keepdims=True)  # on a sphere: none dominates another
    began = time.process_time()
    assert hypervolume(values, np.ones(3)) == pytest.approx(moocore.hypervolume(values, ref=np.ones(3)), rel=1e-9)
    assert time.process_time() - began < 10  # slices of slices take over a minute
