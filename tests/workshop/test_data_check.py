"""Splits of few and uneven images: refused or said before anything trains."""

from __future__ import annotations

import numpy as np
import pytest
from workshops import split_of, workshop_of

from kdnas.core.data import ImageData, Samples, stratified_split
from kdnas.errors import DataError
from kdnas.workshop.split import split_notes


def data_of(*counts: int, test: int = 300) -> ImageData:
    labels = np.repeat(np.arange(len(counts)), counts)
    arrays = Samples({"pixels": np.zeros((len(labels), 1, 2, 2), dtype=np.uint8)}, labels)
    tested = Samples({"pixels": np.zeros((test, 1, 2, 2), dtype=np.uint8)}, np.arange(test) % len(counts))
    return ImageData("few", tuple("abcdefgh"[: len(counts)]), arrays, tested, "f", (0.0,), (1.0,))


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("counts", [(60, 60, 1), (2, 2, 2), (1, 2, 400)])
def test_a_validation_split_never_takes_the_last_image_of_a_class(counts, fraction):
    data = data_of(*counts)
    train, validation = split_of(data, fraction)
    assert sorted([*train, *validation]) == list(range(sum(counts)))
    learnt = np.bincount(data.train.targets[train], minlength=3)
    assert (learnt >= 1).all()
    scored = np.bincount(data.train.targets[validation], minlength=3)
    assert [count > 0 for count in scored] == [count > 1 for count in counts]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((1, 1, 1), "no image is left to score students on: each class has one training image"),
        ((50, 1), "all validation images are of class a:"),
    ],
)
def test_a_split_on_which_nothing_can_be_scored_is_refused(counts, message):
    with pytest.raises(DataError, match=message) as caught:
        split_of(data_of(*counts), 0.6)
    assert len(caught.value.problems) == 1


def test_every_class_has_a_part_in_a_small_share_of_the_images():
    data = data_of(400, 1, 1, 2)
    indices = np.arange(len(data.train))
    for fraction in (0.001, 0.3, 0.7):
        drawn = workshop_of(data, train=indices).share(fraction).indices
        assert set(data.train.targets[drawn]) == {0, 1, 2, 3}
        assert (np.diff(drawn) > 0).all()
    kept, carved = stratified_split(data.train.targets[:400], 0.3, 0)
    assert (len(kept), len(carved)) == (280, 120)


def test_scarce_and_uneven_images_are_said():
    data = data_of(400, 3, 1, test=20)
    train, validation = split_of(data)
    notes = split_notes(data, train, validation)
    assert notes == (
        "validation accuracy moves in steps of 1.2 points: 81 images",
        "test accuracy moves in steps of 5.0 points: 20 images",
        "no validation image of class c: no score measures how well it is learnt",
        "fewer than 5 images to learn from of class b",
        "uneven classes: 320 images to learn from of a, 1 of c; always answering a scores 99%",
    )
    data = data_of(300, 300)
    assert split_notes(data, *split_of(data)) == ()
