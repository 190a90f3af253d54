"""Tasks at other sizes."""

from __future__ import annotations

import pytest

from kdnas.core.objective import ACCURACY, Quantity
from kdnas.core.task import Input, TaskSpec, image_classification


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
    task = image_classification((3, *size), 10)
    assert task.at_share(fraction) == image_classification((3, *reduced), 10)
    assert task.at_share(fraction).image_size == reduced


def test_the_width_follows_the_height() -> None:
    assert image_classification((1, 20, 40), 2).at(15) == image_classification((1, 15, 30), 2)
    assert image_classification((1, 64, 2), 2).at(8).image_size == (8, 1)


def test_a_sequence_task_at_another_length_predicts_as_often_as_it_has_positions() -> None:
    score = Quantity("perplexity", "per token", "minimize", "trained")
    inputs = (Input("input_ids", (64,), "tokens", 4096), Input("attention_mask", (64,), "mask", 2))
    modelling = TaskSpec("language_modelling", inputs, 4096, 64, score)
    assert (modelling.size, modelling.at(16).rows) == (64, 16)
    assert [taken.shape for taken in modelling.at_share(0.25).inputs] == [(16,), (16,)]
    labelling = TaskSpec("text_classification", inputs, 2, 1, score)
    assert (labelling.at(16).rows, labelling.at(16).inputs) == (1, modelling.at(16).inputs)


def test_what_is_not_an_image_has_no_image_shape() -> None:
    task = TaskSpec("language_modelling", (Input("input_ids", (64,), "tokens", 4096),), 4096, 64, ACCURACY)
    with pytest.raises(ValueError, match="not images: input_ids"):
        _ = task.image_shape
