"""Scores of classes and of numbers are scikit-learn's and scipy's."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from kdnas.core.objective import MATTHEWS, SPEARMAN, parse_constraint, unsound
from kdnas.core.pick import Candidate, choose, parse_pick
from kdnas.core.scores import scores_of_classes, scores_of_values


def of(predicted: np.ndarray, true: np.ndarray, classes: int) -> dict[str, float]:
    right = np.bincount(true[predicted == true], minlength=classes)
    return dict(scores_of_classes(right, *(np.bincount(one, minlength=classes) for one in (predicted, true))))


@pytest.mark.parametrize("seed", range(12))
def test_classes_are_scored_as_scikit_learn_does(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    classes, count = int(rng.integers(2, 7)), int(rng.integers(2, 60))
    true = rng.integers(0, max(2, classes - 1), count)  # a class that no sample has
    printed = np.where(rng.random(count) < 0.5, true, rng.integers(0, classes, count))
    found = of(printed, true, classes)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, printed))
    assert found["f1"] == pytest.approx(metrics.f1_score(true, printed, average="macro"))
    assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(true, printed))


def test_one_answer_to_all_is_correlated_with_nothing() -> None:
    true = np.array([0, 0, 0, 1])
    found = of(np.zeros(4, dtype=np.int64), true, 2)
    assert found == {"accuracy": 0.75, "f1": pytest.approx(3 / 7), "matthews": 0.0}
    assert of(1 - true, true, 2)["matthews"] == pytest.approx(-1.0)


@pytest.mark.parametrize("seed", range(8))
def test_numbers_are_scored_as_scipy_does(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 6, 50) / 2  # with ties
    printed = np.round(true + rng.normal(size=50), 1) * 10.0 ** (seed - 4) + 10.0**seed
    found = scores_of_values(printed.astype(np.float32), true)
    assert found["spearman"] == pytest.approx(stats.spearmanr(printed.astype(np.float32), true).statistic)
    assert found["pearson"] == pytest.approx(stats.pearsonr(printed.astype(np.float32), true).statistic)


def test_numbers_that_never_change_or_are_none() -> None:
    true = np.arange(4.0)
    assert scores_of_values(np.ones(4), true) == {"spearman": 0.0, "pearson": 0.0}
    assert all(math.isnan(value) for value in scores_of_values(np.array([1, 2, np.nan, 3]), true).values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores_of_values(1e-200 * true, true)["pearson"] == pytest.approx(1.0)
        assert scores_of_values(1e8 + true, true)["pearson"] == pytest.approx(1.0)


def test_a_correlation_is_bounded_picked_and_shown_as_one() -> None:
    assert unsound("matthews", -0.5) == ""
    assert unsound("spearman", 1.2) == "the spearman is 1.2, not a correlation in -1..1"
    assert unsound("f1", -0.1) == "the f1 is -0.1, below 0"
    assert SPEARMAN.lead(0.8, -0.1) == pytest.approx(0.9)
    assert SPEARMAN.lead(0.8, 0.4) == pytest.approx(0.4)
    assert MATTHEWS.ends(0.95, 0.2) == (0.75, 1.0)
    assert MATTHEWS.shown(0.8134) == "0.8134"
    assert MATTHEWS.shown_points(0.0213) == "2.1 points"
    assert parse_constraint("spearman>=-0.5", SPEARMAN).bound == -0.5
    with pytest.raises(ValueError, match="a correlation, -1 to 1"):
        parse_constraint("spearman>=2", SPEARMAN)
    students = [Candidate(str(macs), {"spearman": score, "macs": macs}) for macs, score in ((1.0, 0.7), (2.0, 0.795))]
    students.append(Candidate("3.0", {"spearman": 0.8, "macs": 3.0}))
    assert choose(parse_pick("near-best", SPEARMAN), students, [SPEARMAN], SPEARMAN) in (1, 2)
    assert choose(parse_pick("best-0.4", SPEARMAN), students, [SPEARMAN], SPEARMAN) == 2
