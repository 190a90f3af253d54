"""Image tasks at other resolutions."""

from __future__ import annotations

import pytest

from kdnas.core.task import ImageTask


@pytest.mark.parametrize(
    ("size", "fraction", "reduced"),
    [
        ((32, 32), 1.0, (32, 32)),
        ((32, 32), 0.5, (16, 16)),
        ((32, 32), 0.33, (11, 11)),
        ((30, 61), 0.5, (15, 30)),
        ((8, 8), 0.1, (4, 4)),
        ((3, 5), 0.5, (3, 5)),
    ],
)
def test_a_share_of_the_resolution_is_whole_pixels(
    size: tuple[int, int], fraction: float, reduced: tuple[int, int]
) -> None:
    task = ImageTask((3, *size), 10)
    assert task.at_resolution(fraction) == ImageTask((3, *reduced), 10)
    assert task.at_resolution(fraction).image_size == reduced


def test_the_width_follows_the_height() -> None:
    assert ImageTask((1, 20, 40), 2).at_height(15) == ImageTask((1, 15, 30), 2)
    assert ImageTask((1, 64, 2), 2).at_height(8).image_size == (8, 1)
