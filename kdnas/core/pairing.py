"""A teacher's own samples, one for each sample that students learn from.

A teacher of sounds teaches a student of pictures: both show one thing, and only the labels relate them, the order in
which both data sets were written, or the keys of their samples.

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
from kdnas.core.task import UNLABELLED
from kdnas.core.words import counted, escaped
from kdnas.errors import DataError, Problem

Pairing = Literal["order", "label", "key"]
"""By what samples are paired: the place that both have in their data sets, their label alone, or what names them."""


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
    elif by == "key":
        chosen, tested = _by_key(theirs.train, ours.train), _by_key(theirs.test, ours.test)
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
    for part, their_part, our_part in (("training", theirs.train, ours.train), ("test", theirs.test, ours.test)):
        a, b = their_part.targets, our_part.targets
        if by == "key":
            problems += _key_problems(where, part, their_part, our_part, ours.name)
        elif by == "label" and (b == UNLABELLED).any():
            what = f"{counted(int((b == UNLABELLED).sum()), f'{part} sample')} of {ours.name} have no label"
            problems.append(Problem(where, what, "pair: order, or pair: key"))
        elif by == "label":
            if missing := [ours.class_names[one] for one in np.setdiff1d(b, a)]:
                listed = ", ".join(map(escaped, missing[:12]))
                problems.append(Problem(where, f"no {part} sample is of class {listed}", "one or more of every class"))
        elif len(a) != len(b):
            what = f"has {counted(len(a), f'{part} sample')}, and {ours.name} has {len(b):,}"
            problems.append(Problem(where, what, "as many in the same order, or pair: label"))
        elif different := _contradictions(a, b):
            what = f"{different:,} of {len(a):,} {part} samples have another label than the one of {ours.name} there"
            problems.append(Problem(where, what, "samples in the same order, or pair: label"))
    return problems


def _contradictions(theirs: np.ndarray, ours: np.ndarray) -> int:
    """Return of how many samples the labels are known on both sides, and differ."""
    return int(((theirs != ours) & (theirs != UNLABELLED) & (ours != UNLABELLED)).sum())


def _key_problems(where: str, part: str, theirs: Samples, ours: Samples, name: str) -> list[Problem]:
    """Return what keeps the samples of a part from being paired by their keys."""
    if theirs.keys is None or ours.keys is None:
        what = (
            f"{'its' if theirs.keys is None else f'the {part}'} samples{'' if theirs.keys is None else f' of {name}'}"
        )
        allowed = "keys in both data sets: `keys` of image_folder, `train_keys` and `test_keys` of npz"
        return [Problem(where, f"{what} have no keys", allowed)]
    names, counts = np.unique(theirs.keys, return_counts=True)
    if twice := [str(one) for one in names[counts > 1]]:
        what = f"{counted(len(twice), 'key')} of its {part} samples occur more than once: {_listed(twice)}"
        return [Problem(where, what, "keys of which there is one each, as `keys: path` has it")]
    if missing := [str(one) for one in np.setdiff1d(ours.keys, theirs.keys)]:
        what = f"{counted(len(missing), f'{part} sample')} of {name} have no partner of their key: {_listed(missing)}"
        return [Problem(where, what, "a sample of every key")]
    if different := _contradictions(theirs.targets[_by_key(theirs, ours)], ours.targets):
        what = f"{different:,} of {len(ours):,} {part} samples have another label than the one of {name} of their key"
        return [Problem(where, what, "the same labels")]
    return []


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(escaped, names[:6])) + (", ..." if len(names) > 6 else "")


def _by_key(theirs: Samples, ours: Samples) -> np.ndarray:
    """Return for each of `ours` the place of the sample of its key among `theirs`."""
    assert theirs.keys is not None
    assert ours.keys is not None
    order = np.argsort(theirs.keys)
    places: np.ndarray = order[np.searchsorted(theirs.keys[order], ours.keys)]
    return places


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
