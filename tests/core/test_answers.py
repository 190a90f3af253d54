"""Sketches of answers: equal up to rounding, different for anything else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdnas.core.answers import apart, coarse_key, sketch, what_differs


@pytest.fixture
def logits() -> np.ndarray:
    return 5 * np.random.default_rng(1).standard_normal((8, 10))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-4])
def test_rounding_changes_nothing(logits: np.ndarray, scale: float, noise: float) -> None:
    rounded = scale * logits * (1 + noise * np.random.default_rng(2).standard_normal(logits.shape))
    assert what_differs(sketch(scale * logits), sketch(rounded)) == ""


def test_any_real_change_is_seen(logits: np.ndarray) -> None:
    before = sketch(logits)
    swapped = logits[:, [1, 0, *range(2, 10)]]
    one_class = logits + np.eye(10)[3]
    one_image = np.where(np.arange(8)[:, None] == 5, logits[::-1], logits)
    for changed in (1.02 * logits, logits / 1000, swapped, one_class, one_image, logits + 0.5):
        assert "its logits differ by" in what_differs(before, sketch(changed))
        assert coarse_key(before) != coarse_key(sketch(changed))
    assert coarse_key(before) == coarse_key(sketch(logits * (1 + 1e-9)))


def test_masked_classes_hide_no_change(logits: np.ndarray) -> None:
    masked, changed = logits.copy(), 1.05 * logits
    masked[:, 3] = changed[:, 3] = -1e30
    assert what_differs(sketch(masked), sketch(changed))


def test_equal_answers_hardly_ever_have_two_keys() -> None:
    draws = np.random.default_rng(3)
    other = 0
    for _ in range(200):
        logits = draws.standard_normal((8, 10))
        noisy = logits * (1 + 1e-6 * draws.standard_normal(logits.shape))
        other += coarse_key(sketch(logits)) != coarse_key(sketch(noisy))
    assert other <= 4


def test_what_was_never_sketched_is_compared_with_nothing() -> None:
    assert what_differs((), (1.0, 2.0)) == ""
    assert what_differs((1.0,), ()) == ""
    assert coarse_key(()) == ""
    assert apart((1.0, 2.0), (1.0,)) == math.inf
    assert apart((3.0, 4.0), (3.0, 4.0)) == 0.0
    assert sketch(np.zeros((2, 3))) == (0.0,) * 8
