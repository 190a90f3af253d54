"""Boxes and improvements against the hypervolume with and without a point, and against sampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from kdnas.core.hypervolume import hypervolume
from kdnas.core.improvement import expected_improvement, free_boxes, improvement


@pytest.mark.parametrize("grid", [None, 4], ids=["general", "ties"])
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_improvement_is_the_difference_of_two_hypervolumes(objectives, grid):
    rng = np.random.default_rng(objectives)
    front, points = 0.2 + 0.8 * rng.random((25, objectives)), rng.random((40, objectives))
    if grid:
        front, points = np.round(front * grid) / grid, np.round(points * grid) / grid
    reference = np.full(objectives, 0.95)
    before = hypervolume(front, reference)
    expected = [hypervolume(np.vstack([front, point]), reference) - before for point in points]
    assert np.allclose(improvement(points, free_boxes(front, reference)), expected, atol=1e-12)
    assert max(expected) > 0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_boxes_tile_what_is_not_dominated(objectives):
    rng = np.random.default_rng(0)
    front, reference = rng.random((15, objectives)), np.ones(objectives)
    boxes = free_boxes(front, reference)
    points = rng.random((3000, objectives))
    inside = np.all((points[:, None] > boxes.lower) & (points[:, None] < boxes.upper), axis=2).sum(axis=1)
    dominated = np.any(np.all(front[None] <= points[:, None], axis=2), axis=1)
    assert np.array_equal(inside, (~dominated).astype(int))


def test_without_a_front_the_whole_box_is_gained():
    boxes = free_boxes(np.zeros((0, 3)), np.array([1.0, 2.0, 3.0]))
    assert improvement(np.array([[0.5, 1.0, 1.0], [2.0, 0.0, 0.0]]), boxes) == pytest.approx([0.5 * 1.0 * 2.0, 0.0])


def test_a_front_beyond_the_reference_does_not_count():
    reference = np.array([1.0, 1.0])
    assert improvement(np.array([[0.5, 0.5]]), free_boxes(np.array([[0.0, 1.0]]), reference)) == pytest.approx([0.25])


@pytest.mark.parametrize("objectives", [2, 3])
def test_expected_improvement_is_the_mean_over_draws(objectives):
    rng = np.random.default_rng(5)
    front, reference = rng.random((8, objectives)), np.ones(objectives)
    boxes = free_boxes(front, reference)
    mean, spread = rng.random(objectives), 0.2

    def shortfall(centre):
        def expected(edges):
            z = (edges[None, :] - centre) / spread
            return spread * (z * norm.cdf(z) + norm.pdf(z))

        return expected

    expected = expected_improvement([shortfall(centre) for centre in mean], 1, boxes)[0]
    gains = improvement(rng.normal(mean, spread, size=(40_000, objectives)), boxes)
    assert expected == pytest.approx(gains.mean(), abs=4 * gains.std() / 200)
    assert expected > 0
