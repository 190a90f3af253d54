"""Permuted classes are found and named; weak teachers and few images are no reason to call classes permuted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kdnas.workshop.class_order import Renaming, find_renaming

ANIMALS = ("cat", "dog", "fish", "owl", "ape", "bat", "cow", "elk", "fox", "hen")


def _answers(labels: np.ndarray, classes: int, accuracy: float, seed: int, *, biased: bool = False) -> np.ndarray:
    """Return answers right at the rate `accuracy`; the others uniform, or `biased` to a few classes each."""
    draws = np.random.default_rng(seed)
    shares = draws.dirichlet(np.full(classes, 0.3 if biased else 1e6), size=classes)
    wrong = np.array([draws.choice(classes, p=shares[label]) for label in labels])
    return np.where(draws.random(len(labels)) < accuracy, labels, wrong)


def _labels(classes: int, images: int) -> np.ndarray:
    return np.repeat(np.arange(classes), images)


def _permuted(predicted: np.ndarray, order: list[int]) -> np.ndarray:
    """Return the answers of a teacher whose output i is the data's class order[i]."""
    return np.argsort(order)[predicted]


@pytest.mark.parametrize("accuracy", [0.35, 0.6, 0.97])
@pytest.mark.parametrize(
    "order",
    [
        [0, 1, 4, 2, 3, 5, 6, 7, 8, 9],  # three rotated
        [1, 0, 2, 3, 4, 5, 6, 7, 8, 9],  # two swapped
        [1, 2, 0, 4, 5, 3, 6, 7, 9, 8],  # several cycles
        [9, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    ],
)
def test_a_permutation_is_found(order: list[int], accuracy: float) -> None:
    labels = _labels(10, 60)
    predicted = _answers(labels, 10, accuracy, seed=1)
    found = find_renaming(_permuted(predicted, order), labels, ANIMALS)
    assert isinstance(found, Renaming)
    assert found.classes == tuple(order)
    assert found.renamed == pytest.approx((predicted == labels).mean())
    assert found.given < found.renamed
    assert found.names(ANIMALS) == [ANIMALS[index] for index in order]


@pytest.mark.parametrize(
    ("names", "order", "words"),
    [
        (sorted(map(str, range(12))), "natural", "stand in natural order (0, 1, 2, 3, 4, 5, ...)"),
        (tuple(map(str, range(12))), "text", "stand in the order of text (0, 1, 10, 11, 2, 3, ...)"),
        (("Bird", "Dog", "ant", "cat"), "folded", "in alphabetical order whatever the case (ant, Bird, cat, Dog)"),
        (("cat", "dog", "fish"), [2, 1, 0], "its output 'cat' means 'fish', its output 'fish' means 'cat'"),
        (("cat", "dog", "fish", "owl"), [3, 2, 1, 0], "stand in reverse order"),
        (ANIMALS, [9, *range(9)], "are shifted: the data's class i is its output i + 1"),
        (ANIMALS, [*range(1, 10), 0], "are shifted: the data's class i is its output i - 1"),
        (("no", "yes"), [1, 0], "its two classes are swapped"),
    ],
)
def test_the_permutation_is_named_in_words(names: tuple[str, ...], order: str | list[int], words: str) -> None:
    if isinstance(order, str):
        keys = {"natural": int, "text": str, "folded": str.casefold}
        order = sorted(range(len(names)), key=lambda index: keys[order](names[index]))
    labels = _labels(len(names), 20)
    found = find_renaming(_permuted(_answers(labels, len(names), 0.9, seed=2), order), labels, names)
    assert found is not None
    assert words in found.words
    assert found.classes == tuple(order)


@pytest.mark.parametrize(("classes", "images"), [(2, 5), (2, 40), (3, 10), (10, 2), (10, 10), (10, 200), (50, 3)])
@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.95])
def test_a_weak_teacher_or_few_images_are_no_permutation(classes: int, images: int, accuracy: float) -> None:
    labels = _labels(classes, images)
    names = tuple(map(str, range(classes)))
    for seed, biased in itertools.product(range(8), (False, True)):
        assert find_renaming(_answers(labels, classes, accuracy, seed, biased=biased), labels, names) is None


def test_a_constant_teacher_has_no_order() -> None:
    labels = np.repeat([0, 1, 2], [2, 50, 10])
    assert find_renaming(np.zeros(62, dtype=np.int64), labels, ("a", "b", "c")) is None


def test_few_images_may_hint_at_what_they_do_not_prove() -> None:
    labels = _labels(10, 2)
    predicted = _permuted(labels, [0, 1, 4, 2, 3, 5, 6, 7, 8, 9])
    assert find_renaming(predicted, labels, ANIMALS) is None
    hint = find_renaming(predicted, labels, ANIMALS, proven=False)
    assert hint is not None
    assert hint.classes == (0, 1, 4, 2, 3, 5, 6, 7, 8, 9)


def test_classes_without_images_follow_the_usual_order() -> None:
    names = tuple(sorted(map(str, range(12))))
    order = sorted(range(12), key=lambda index: int(names[index]))
    labels = np.repeat(np.delete(np.arange(12), [3, 7]), 20)
    found = find_renaming(_permuted(_answers(labels, 12, 0.95, seed=3), order), labels, names)
    assert found is not None
    assert found.classes == tuple(order)
