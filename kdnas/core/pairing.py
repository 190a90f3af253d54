"""A teacher's own samples, one for each sample that students learn from.

A teacher of sounds teaches a student of pictures: both show one thing, and only the labels relate them, or
the order in which both data sets were written.

Shapes: N samples of a part, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from kdnas.core.data import Array, Data, Samples
from kdnas.core.seeds import derive_seed
from kdnas.core.words import counted, escaped
from kdnas.errors import DataError, Problem

Pairing = Literal["order", "label"]
"""By what samples are paired: the place that both have in their data sets, or their label alone."""


class Picked:
    """The rows of an array at given places int64 [N], which may stand twice, as an array [N, ...] of their own."""

    def __init__(self, array: Array, places: np.ndarray):
        self._array, self._places = array, places

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self._places), *self._array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows."""
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Any) -> Any:
        """Return the rows at a slice, or at places int64 [n]."""
        return self._array[self._places[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows."""
        return np.asarray(self[:], dtype=dtype)


def paired(theirs: Data, ours: Data, by: Pairing, parts: Sequence[np.ndarray], seed: int) -> Data:
    """Return the teacher's data `theirs` with one sample for each of `ours`, in their order and with their labels.

    By label, a sample gets one of its class, drawn by `seed`: each of them as often as the others. `parts` are the
    places of our training samples that are kept apart, those learnt from and those scored on: so are theirs. Raises
    DataError, with all that is wrong, where they cannot be paired.
    """
    if problems := _mismatches(theirs, ours, by):
        raise DataError(problems)
    train, test = ours.train.targets, ours.test.targets
    if by == "label":
        chosen = np.full(len(train), -1, dtype=np.int64)
        pools = _pools(theirs.train.targets, train, parts, derive_seed(seed, "pools"))
        for number, (part, pool) in enumerate(zip(parts, pools, strict=True)):
            drawn = _by_label(theirs.train.targets[pool], train[part], derive_seed(seed, "part", number))
            chosen[part] = pool[drawn]
        tested = _by_label(theirs.test.targets, test, derive_seed(seed, "test"))
    else:
        chosen, tested = np.arange(len(train)), np.arange(len(test))
    facts = [theirs.fingerprint, ours.fingerprint, by, *(one.astype("<i8").tobytes().hex() for one in (chosen, tested))]
    return replace(
        theirs,
        train=Samples({name: Picked(array, chosen) for name, array in theirs.train.inputs.items()}, train),
        test=Samples({name: Picked(array, tested) for name, array in theirs.test.inputs.items()}, test),
        fingerprint=hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16],
        stated_validation=0,
    )


def _mismatches(theirs: Data, ours: Data, by: Pairing) -> list[Problem]:
    where, problems = f"data: {theirs.name}", []
    if theirs.task.rows > 1 or ours.task.rows > 1:
        what = "samples of many predictions each, as texts of a language model, are not paired with others"
        return [Problem(where, what, "one prediction a sample")]
    if not theirs.class_names or theirs.class_names != ours.class_names:
        names, wanted = (", ".join(map(escaped, each.class_names[:12])) or "none" for each in (theirs, ours))
        return [Problem(where, f"its classes are {names}", f"those of {ours.name}, in their order: {wanted}")]
    for part, a, b in (
        ("training", theirs.train.targets, ours.train.targets),
        ("test", theirs.test.targets, ours.test.targets),
    ):
        if by == "label":
            if missing := [ours.class_names[one] for one in np.setdiff1d(b, a)]:
                listed = ", ".join(map(escaped, missing[:12]))
                problems.append(Problem(where, f"no {part} sample is of class {listed}", "one or more of every class"))
        elif len(a) != len(b):
            what = f"has {counted(len(a), f'{part} sample')}, and {ours.name} has {len(b):,}"
            problems.append(Problem(where, what, "as many in the same order, or pair: label"))
        elif different := int((a != b).sum()):
            what = f"{different:,} of {len(a):,} {part} samples have another label than the one of {ours.name} there"
            problems.append(Problem(where, what, "samples in the same order, or pair: label"))
    return problems


def _pools(theirs: np.ndarray, ours: np.ndarray, parts: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return places of `theirs` for each of `parts`, apart from each other and in proportion, class by class.

    A class of which there is one sample alone serves all parts.
    """
    rng = np.random.default_rng(seed)
    pools: list[list[np.ndarray]] = [[] for _ in parts]
    for label in np.unique(ours):
        order = rng.permutation(np.flatnonzero(theirs == label))
        counts = np.array([(ours[part] == label).sum() for part in parts])
        asked = counts > 0
        if len(order) < asked.sum():
            for pool in pools:
                pool.append(order)
            continue
        # Each part that asks gets one, and its share of the rest.
        spare = len(order) - asked.sum()
        ends = np.cumsum(asked) + np.floor(spare * np.cumsum(counts) / counts.sum()).astype(np.int64)
        for pool, begin, end in zip(pools, [0, *ends[:-1]], ends, strict=True):
            pool.append(order[begin:end])
    return [np.sort(np.concatenate(pool)) for pool in pools]


def _by_label(theirs: np.ndarray, ours: np.ndarray, seed: int) -> np.ndarray:
    """Return for each of `ours` the place of a sample of its label among `theirs`, all of them as often as can be."""
    rng = np.random.default_rng(seed)
    places = np.empty(len(ours), dtype=np.int64)
    for label in np.unique(ours):
        wanted, there = np.flatnonzero(ours == label), np.flatnonzero(theirs == label)
        rounds = [rng.permutation(there) for _ in range(-(-len(wanted) // len(there)))]
        places[wanted] = np.concatenate(rounds)[: len(wanted)]
    return places
