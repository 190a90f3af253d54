"""What decoded arrays say against themselves."""

import numpy as np

from kdnas.datasets._content import content_notes

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
LABELS = np.arange(60) % 3
NAMES = ("a", "b", "c")


def test_different_images_are_not_spoken_of():
    assert content_notes(IMAGES, LABELS, [(NAMES, LABELS[45:])], 45) == []


def test_equal_images_are_counted_within_and_between_the_splits():
    images = IMAGES.copy()
    images[3] = images[6] = images[0]  # of one class
    images[48] = images[51] = images[9]  # test images
    repeated, leaked = content_notes(images, LABELS, [(NAMES, LABELS[45:])], 45)
    assert repeated.startswith("3 of the 45 training images are equal")
    assert "43 different images; the commonest occurs 3 times" in repeated
    assert leaked.startswith("2 of the 15 test images are also training images")


def test_equal_images_of_different_classes_contradict_each_other():
    images = IMAGES.copy()
    images[1] = images[0]
    images[46] = images[5]
    notes = content_notes(images, LABELS, [(NAMES, LABELS[45:])], 45)
    assert "4 images are equal to one of another class: their labels contradict each other" in notes


def test_images_that_are_all_equal_are_said_to_teach_nothing():
    notes = content_notes(np.full_like(IMAGES, 7), LABELS, [(NAMES, LABELS[45:])], 45)
    assert "1 different images; the commonest occurs 45 times): almost nothing can be learnt" in notes[0]


def test_classes_without_test_images_are_named():
    assert content_notes(IMAGES[:47], LABELS[:47], [(NAMES, LABELS[45:47])], 45) == ["no test image of class c"]
