"""A teacher's own samples, one for each of the students'."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kdnas.core.data import ImageData, Samples
from kdnas.core.pairing import paired
from kdnas.errors import DataError


def data(name: str, train: list[int], test: list[int], size: int = 4, names: tuple[str, ...] = ("a", "b", "c")):
    """Images whose first pixel tells their place, in the training split or, from 100 on, in the test split."""

    def samples(labels: list[int], first: int) -> Samples:
        pixels = np.zeros((len(labels), 1, size, size), np.uint8)
        pixels[:, 0, 0, 0] = first + np.arange(len(labels))
        return Samples({"pixels": pixels}, np.array(labels))

    return ImageData(name, names, samples(train, 0), samples(test, 100), f"hash of {name}", (0.0,), (1.0,))


def places(samples: Samples) -> np.ndarray:
    return np.asarray(samples.inputs["pixels"][:])[:, 0, 0, 0]


def test_by_order_every_sample_has_that_of_its_place():
    ours, theirs = data("ours", [0, 1, 2, 0], [2, 1]), data("theirs", [0, 1, 2, 0], [2, 1], size=6)
    both = paired(theirs, ours, "order", (np.arange(4),), seed=0)
    assert places(both.train).tolist() == [0, 1, 2, 3]
    assert places(both.test).tolist() == [100, 101]
    assert both.train.inputs["pixels"].shape == (4, 1, 6, 6)
    assert both.fingerprint not in (ours.fingerprint, theirs.fingerprint)


def test_by_label_every_sample_has_one_of_its_class_and_all_are_used_alike():
    own = [0] * 30 + [1] * 20 + [2] * 10
    ours, theirs = data("ours", own, own), data("theirs", [2] * 4 + [0] * 10 + [1] * 5, [0, 1, 2])
    both = paired(theirs, ours, "label", (np.arange(60),), seed=0)
    chosen = places(both.train)
    assert (theirs.train.targets[chosen] == ours.train.targets).all()
    assert (both.train.targets == ours.train.targets).all()
    uses = Counter(chosen.tolist())
    assert {uses[place] for place in range(4, 14)} == {3}  # 30 of class a over 10
    assert {uses[place] for place in range(14, 19)} == {4}
    assert {uses[place] for place in range(4)} == {2, 3}
    assert (theirs.test.targets[places(both.test) - 100] == ours.test.targets).all()


def test_what_students_are_scored_on_has_samples_of_its_own():
    own = [0] * 8 + [1] * 8 + [2] * 8
    ours, theirs = data("ours", own, own), data("theirs", own * 2, own)
    scored = np.array([0, 1, 8, 9, 16, 17])
    learnt = np.setdiff1d(np.arange(24), scored)
    chosen = places(paired(theirs, ours, "label", (learnt, scored), seed=3).train)
    assert not set(chosen[learnt]) & set(chosen[scored])
    assert len(set(chosen[learnt])) == 18
    assert len(set(chosen[scored])) == 6


def test_a_class_of_one_sample_serves_both_parts():
    own = [0, 0, 1, 1, 2, 2]
    ours, theirs = data("ours", own, own), data("theirs", [0, 1, 2, 0, 1], own)
    learnt, scored = np.array([0, 2, 4]), np.array([1, 3, 5])
    chosen = places(paired(theirs, ours, "label", (learnt, scored), seed=0).train)
    assert chosen[4] == chosen[5] == 2
    assert {chosen[0], chosen[1]} == {0, 3}


def test_another_seed_draws_other_pairs_and_has_another_hash():
    own = [0] * 20 + [1] * 20 + [2] * 20
    ours, theirs = data("ours", own, own), data("theirs", own, own)
    first, again, other = (paired(theirs, ours, "label", (np.arange(60),), seed=seed) for seed in (0, 0, 1))
    assert (places(first.train) == places(again.train)).all()
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert (places(first.train) != places(other.train)).any()


@pytest.mark.parametrize(
    ("theirs", "by", "message"),
    [
        (data("theirs", [0, 1, 2], [0]), "order", "has 3 training samples, and ours has 4"),
        (data("theirs", [0, 1, 2, 1], [0, 1, 2]), "order", "1 of 4 training samples have another label"),
        (data("theirs", [0, 1], [0, 1, 2]), "label", "no training sample is of class c"),
        (data("theirs", [0, 1, 2, 0], [0, 1, 2], names=("a", "c", "b")), "label", "its classes are a, c, b"),
    ],
)
def test_what_cannot_be_paired_is_refused(theirs: ImageData, by: str, message: str):
    with pytest.raises(DataError, match=message):
        paired(theirs, data("ours", [0, 1, 2, 0], [0, 1, 2]), by, (np.arange(4),), seed=0)


def keyed(name: str, train: list[int], test: list[int], keys: list[str]) -> ImageData:
    found = data(name, train, test)
    own = np.array(keys)
    return replace(
        found,
        train=replace(found.train, keys=own[: len(train)]),
        test=replace(found.test, keys=own[len(train) :]),
    )


def test_by_key_every_sample_has_that_of_its_name():
    ours = keyed("ours", [0, 1, -1], [2], ["x", "y", "z", "t"])
    theirs = keyed("theirs", [2, 1, 0, 2], [2, 0], ["z", "y", "x", "w", "s", "t"])
    theirs = replace(theirs, test=replace(theirs.test, targets=np.array([0, 2])))
    both = paired(theirs, ours, "key", (np.arange(3),), seed=0)
    assert places(both.train).tolist() == [2, 1, 0]
    assert both.train.targets.tolist() == [0, 1, -1]
    assert places(both.test).tolist() == [101]


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (data("theirs", [0, 1], [2]), "have no keys"),
        (keyed("theirs", [0, 1], [2], ["x", "q", "t"]), "1 training sample of ours have no partner of their key: y"),
        (keyed("theirs", [0, 1, 1], [2], ["x", "y", "y", "t"]), "occur more than once: y"),
        (keyed("theirs", [0, 2], [2], ["x", "y", "t"]), "another label"),
    ],
)
def test_keys_that_are_not_there_or_contradict_are_refused(theirs, told):
    with pytest.raises(DataError, match=told):
        paired(theirs, keyed("ours", [0, 1], [2], ["x", "y", "t"]), "key", (np.arange(2),), seed=0)


def test_unlabelled_samples_have_no_partner_by_label():
    with pytest.raises(DataError, match="1 training sample of ours have no label"):
        paired(data("theirs", [0, 1], [2]), data("ours", [0, -1], [2]), "label", (np.arange(2),), seed=0)
