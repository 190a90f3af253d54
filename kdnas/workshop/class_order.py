"""Whether a teacher's classes stand in another order than the data's, seen from what it answers to labelled samples.

A teacher that was trained with its classes in natural order, or with three of them rotated, is right about every sample
and answers with the wrong index. The one-to-one renaming that explains its answers best solves the assignment problem
on the confusion matrix (Kuhn, "The Hungarian method for the assignment problem", 1955). A renaming that is fitted
to few samples looks better than it is, so each of its cycles must also prove itself on the half of the samples that it
was not fitted to.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_RATIO = 2.0
"""A cycle of classes is renamed only where that makes more than so many times as many of their samples right."""
_CHANCE = 1e-3
"""How likely luck may explain that."""
_NEAR = 0.5
"""Renamed classes must be answered right at so many times the rate of the others."""
_LEAST = 3
"""Samples that a cycle must make right, proven or not."""
_AS_WELL = 0.97
"""A usual order explains as well as the best one when it makes so many of the same samples right."""
_MOST_CLASSES = 4096
_SHOWN = 12


@dataclass(frozen=True)
class Renaming:
    """Another order of a teacher's classes: its output `i` is the data's class `classes[i]`.

    `given` and `renamed` are the shares of samples in [0, 1] that are right as it stands, and with the renaming.
    `words` describe the order.
    """

    classes: tuple[int, ...]
    given: float
    renamed: float
    words: str

    def names(self, class_names: Sequence[str]) -> list[str]:
        """Return the teacher's `class_names` in its own order."""
        return [class_names[index] for index in self.classes]


def find_renaming(
    predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, proven: bool = True
) -> Renaming | None:
    """Return the renaming of classes that explains the answers `predicted` [N] to samples of `labels` [N] much better.

    None where there is none. Not `proven`: luck may be the reason, since the samples are few.
    """
    count = len(class_names)
    if count > _MOST_CLASSES or len(labels) == 0:
        return None
    best = _assignment(predicted, labels, count)
    halves = _halves(labels)
    fitted = [_assignment(predicted[half], labels[half], count) for half in halves]
    moved = np.arange(count)
    for cycle in _cycles(best):
        inside = np.isin(labels, cycle)
        right = {c: ((best[predicted] == labels) & (labels == c)).sum() for c in cycle}
        as_given = {c: ((predicted == labels) & (labels == c)).sum() for c in cycle}
        if any(right[c] < as_given[c] for c in cycle) or sum(right.values()) <= _RATIO * sum(as_given.values()):
            continue
        if not _as_good_inside(best, predicted, labels, inside):
            continue
        held_out = sum(
            int((order[predicted] == labels)[~half & inside].sum()) for order, half in zip(fitted, halves, strict=True)
        )
        still = sum(int((predicted == labels)[~half & inside].sum()) for half in halves)
        if held_out <= _RATIO * still or held_out < _LEAST:
            continue
        if proven and _luck(held_out, still) * count > _CHANCE:
            continue
        moved[cycle] = best[cycle]
    if np.array_equal(moved, np.arange(count)):
        return None
    moved, words = _named(moved, predicted, labels, class_names)
    given, renamed = float((predicted == labels).mean()), float((moved[predicted] == labels).mean())
    return Renaming(tuple(int(index) for index in moved), given, renamed, words)


def _as_good_inside(order: np.ndarray, predicted: np.ndarray, labels: np.ndarray, inside: np.ndarray) -> bool:
    """Return whether renamed classes come near the others: a bias of a weak teacher explains a part of them alone."""
    if inside.all():
        return True
    right = order[predicted] == labels
    return bool(right[inside].mean() >= _NEAR * (predicted == labels)[~inside].mean())


def _assignment(predicted: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return the data's class of each output [K] by which most samples are right; outputs stay where nothing does."""
    from scipy.optimize import linear_sum_assignment

    confusion = np.zeros((count, count))
    np.add.at(confusion, (predicted, labels), 1.0)
    confusion += 1e-3 * np.eye(count)
    return np.asarray(linear_sum_assignment(confusion, maximize=True)[1])


def _halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two masks [N]: every other sample of each class, and the rest."""
    first = np.zeros(len(labels), dtype=bool)
    for place, label in enumerate(np.unique(labels)):
        first[np.flatnonzero(labels == label)[place % 2 :: 2]] = True
    return first, ~first


def _cycles(order: np.ndarray) -> Iterator[list[int]]:
    """Yield the classes of each cycle of a permutation that moves anything."""
    seen: set[int] = set()
    for start in range(len(order)):
        cycle = []
        while start not in seen:
            seen.add(start)
            cycle.append(start)
            start = int(order[start])
        if len(cycle) > 1:
            yield cycle


def _luck(better: int, worse: int) -> float:
    """Return the chance that a fair coin decides so many samples for the renaming: the sign test, one-sided."""
    from scipy.stats import binom

    return float(binom.sf(better - 1, better + worse, 0.5))


def _named(
    found: np.ndarray, predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> tuple[np.ndarray, str]:
    """Return the renaming as a usual order where that explains the answers as well, and which it is in words."""
    right = (found[predicted] == labels).sum()
    moved = [output for output in range(len(found)) if found[output] != output]
    if len(moved) > 2 or len(found) == 2:
        for order, words in _usual_orders(class_names):
            # Where few samples decide, the usual order does.
            if (order[predicted] == labels).sum() >= _AS_WELL * right and (order != np.arange(len(order))).any():
                return order, words
    pairs = [f"its output {class_names[output]!r} means {class_names[found[output]]!r}" for output in moved]
    more = f", and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return found, f"{', '.join(pairs[:_SHOWN])}{more}"


def _usual_orders(class_names: Sequence[str]) -> Iterator[tuple[np.ndarray, str]]:
    count = len(class_names)
    by_natural = sorted(range(count), key=lambda index: _natural(class_names[index]))
    yield np.array(by_natural), f"its classes stand in natural order ({_start(class_names, by_natural)})"
    by_text = sorted(range(count), key=lambda index: class_names[index])
    yield np.array(by_text), f"its classes stand in the order of text ({_start(class_names, by_text)})"
    folded = sorted(range(count), key=lambda index: class_names[index].casefold())
    yield np.array(folded), f"its classes stand in alphabetical order whatever the case ({_start(class_names, folded)})"
    yield np.arange(count)[::-1], "its two classes are swapped" if count == 2 else "its classes stand in reverse order"
    for shift in range(1, count):
        later = f"i + {shift}" if shift <= count // 2 else f"i - {count - shift}"
        yield np.roll(np.arange(count), shift), f"its classes are shifted: the data's class i is its output {later}"


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key by which 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _start(class_names: Sequence[str], order: Sequence[int]) -> str:
    shown = ", ".join(class_names[index] for index in order[:6])
    return f"{shown}, ..." if len(order) > 6 else shown
