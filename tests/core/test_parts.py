"""Samples divided among parties: disjoint, complete, and as unlike as is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from kdnas.core.parts import Part

TARGETS = np.arange(1000) % 10


@pytest.mark.parametrize("skew", [None, 0.1, 1.0, 100.0])
def test_parts_are_disjoint_and_all_of_the_samples(skew: float | None) -> None:
    parts = [Part(number, 7, skew).places(TARGETS, 3) for number in range(7)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    assert all(np.array_equal(part, np.sort(part)) for part in parts)
    assert np.array_equal(parts[2], Part(2, 7, skew).places(TARGETS, 3))
    assert not np.array_equal(parts[2], Part(2, 7, skew).places(TARGETS, 4))


def test_the_smaller_the_skew_the_fewer_classes_a_part_has() -> None:
    def largest_share(skew: float | None) -> float:
        """Return the mean share of a part's most frequent class."""
        parts = [TARGETS[Part(number, 5, skew).places(TARGETS, 0)] for number in range(5)]
        return float(np.mean([np.bincount(part, minlength=10).max() / len(part) for part in parts if len(part)]))

    shares = [largest_share(skew) for skew in (None, 100.0, 1.0, 0.05)]
    assert shares[0] < 0.16
    assert shares[1] < 0.16
    assert shares[1] < shares[2] < shares[3]
    assert shares[3] > 0.35
