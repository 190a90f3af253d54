"""What the proxies choose, against exhaustive search and closed forms; and a study that trains on their choice."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from kdnas.core.task import image_classification
from kdnas.core.text import language_modelling
from kdnas.errors import ConfigError
from kdnas.proxies import PROXIES, Pool
from kdnas.registry import Member
from kdnas.tasks import task_of
from kdnas.workshop.proxy import choose

CLASSES = task_of(image_classification((3, 8, 8), 2))


def pool(features: np.ndarray, labels: np.ndarray, share: float, seed: int = 0) -> Pool:
    return Pool(labels, share, seed, CLASSES, lambda: features)


def test_random_is_the_share_that_a_study_without_a_proxy_draws():
    labels = np.arange(100) % 2
    places = PROXIES.build("random", pool(np.zeros((100, 1)), labels, 0.3, seed=5))
    assert np.array_equal(places, CLASSES.draw(labels, 0.3, 5))


def test_herding_takes_what_brings_the_mean_nearest_at_every_step():
    features = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    labels = np.zeros(40, dtype=np.int64)
    places = PROXIES.build("herding", pool(features, labels, 0.2)).tolist()
    assert len(places) == 8
    for size in range(8):
        others = [n for n in range(40) if n not in places[:size]]
        gaps = [np.linalg.norm(features[[*places[:size], n]].mean(axis=0) - features.mean(axis=0)) for n in others]
        assert others[int(np.argmin(gaps))] == places[size]


def test_herding_keeps_the_mean_better_than_chance():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(400, 8)).astype(np.float32), np.zeros(400, dtype=np.int64)
    gap = {
        name: np.linalg.norm(features[PROXIES.build(name, pool(features, labels, 0.1))].mean(axis=0) - features.mean(0))
        for name in ("herding", "random")
    }
    assert gap["herding"] < gap["random"] / 10


def test_k_center_covers_within_twice_the_best_radius():
    features = np.random.default_rng(2).normal(size=(14, 2)).astype(np.float32)
    places = PROXIES.build("k_center", pool(features, np.zeros(14, dtype=np.int64), 0.22))
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    radius = {chosen: distances[:, list(chosen)].min(axis=1).max() for chosen in itertools.combinations(range(14), 3)}
    assert len(places) == 3
    assert radius[tuple(sorted(places.tolist()))] <= 2 * min(radius.values())


def test_equal_samples_are_chosen_once_each():
    for name in ("herding", "k_center"):
        places = PROXIES.build(name, pool(np.ones((20, 2), np.float32), np.zeros(20, dtype=np.int64), 0.5))
        assert len(np.unique(places)) == 10


def test_blocks_of_text_are_chosen_as_one_class():
    blocks = np.zeros((30, 16), dtype=np.int64)
    features = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
    text = Pool(blocks, 0.2, 0, task_of(language_modelling(16, 50)), lambda: features)
    assert len(PROXIES.build("k_center", text)) == 6


def test_a_choice_is_kept_and_one_that_was_damaged_is_made_anew(tmp_path: Path):
    asked: list[int] = []
    features = np.random.default_rng(4).normal(size=(40, 3)).astype(np.float32)
    labels = np.arange(40) % 2
    counted = Pool(labels, 0.25, 0, CLASSES, lambda: (asked.append(1), features)[1])
    first = choose(Member(type="herding"), counted, tmp_path, {"data": "x"})
    assert np.array_equal(first, np.sort(first))
    assert np.array_equal(choose(Member(type="herding"), counted, tmp_path, {"data": "x"}), first)
    assert len(asked) == 1
    (kept,) = tmp_path.glob("*.npy")
    kept.write_bytes(kept.read_bytes()[:90])
    assert np.array_equal(choose(Member(type="herding"), counted, tmp_path, {"data": "x"}), first)
    choose(Member(type="herding"), counted, tmp_path, {"data": "y"})
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("[0.5]", "gives float64 of shape"),
        ("[]", "chooses no samples|gives float64"),
        ("[1, 1]", "chooses samples twice"),
        ("[99]", "chooses places that are none"),
    ],
)
def test_what_is_no_choice_is_refused(tmp_path: Path, body: str, fault: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PROXIES._members, "odd", lambda pool: np.array(eval(body)))
    with pytest.raises(ConfigError, match=fault):
        choose(Member(type="odd"), pool(np.zeros((9, 1)), np.zeros(9, dtype=np.int64), 0.5), tmp_path, {})
