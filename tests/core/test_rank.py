"""Rank agreement against scipy, against brute force, against simulation, and on a published table."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kdnas.core.rank import (
    agreement,
    agreement_gain,
    equal_bands,
    kendall_tau,
    mean_agreement,
    partial_agreement,
    percentile_interval,
    resampled_taus,
)


@pytest.mark.parametrize("levels", [3, 8, 1000])
def test_tau_is_scipys_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    for n in (2, 5, 12, 60):
        x, y = rng.integers(0, levels, n), rng.integers(0, levels, n)
        expected = stats.kendalltau(x, y, variant="b").statistic
        assert kendall_tau(x, y) == pytest.approx(expected, nan_ok=True)


def test_tau_of_what_does_not_differ_is_not_a_number():
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    assert math.isnan(kendall_tau([1], [1]))
    assert agreement([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert agreement([1, 2], [1, 2]) is None
    with pytest.raises(ValueError, match="cannot be compared"):
        kendall_tau([1, 2], [1, 2, 3])


def test_tau_inside_bands_counts_the_pairs_of_a_band_alone():
    rng = np.random.default_rng(1)
    x, y, bands = rng.integers(0, 9, 30), rng.integers(0, 9, 30), rng.integers(0, 6, 30)
    concordant = in_x = in_y = pairs = 0
    for i, j in itertools.combinations(range(30), 2):
        if bands[i] == bands[j]:
            a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
            concordant, in_x, in_y, pairs = concordant + a * b, in_x + a * a, in_y + b * b, pairs + 1
    assert kendall_tau(x, y, within=bands) == pytest.approx(concordant / math.sqrt(in_x * in_y))
    assert agreement(x, y, within=bands).pairs == pairs


def test_items_without_a_partner_in_their_band_are_not_counted():
    found = agreement([1, 2, 3, 9], [1, 2, 3, 9], within=[0, 0, 0, 1])
    assert (found.items, found.pairs) == (3, 3)


def test_resamples_are_those_of_scipy_on_the_drawn_items():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=9), rng.normal(size=9)
    draws = np.random.default_rng(20450101).multinomial(9, np.full(9, 1 / 9), size=2000)[:50]
    for counts, tau in zip(draws, resampled_taus(x, y)[:50], strict=True):
        items = np.repeat(np.arange(9), counts)
        assert tau == pytest.approx(stats.kendalltau(x[items], y[items]).statistic)


@pytest.mark.parametrize(("n", "correlation"), [(8, 0.8), (16, 0.0), (16, 0.8), (24, 0.95)])
def test_the_interval_covers_the_true_tau_about_as_often_as_it_says(n, correlation):
    rng = np.random.default_rng(n)
    true = 2 / math.pi * math.asin(correlation)  # of a bivariate normal distribution
    hits = 0
    for _ in range(150):
        x, noise = rng.normal(size=n), rng.normal(size=n)
        found = agreement(x, correlation * x + math.sqrt(1 - correlation**2) * noise)
        hits += found.low <= true <= found.high
    assert hits / 150 >= 0.90


def test_a_perfect_agreement_of_few_items_is_not_certain():
    few, many = agreement(range(6), range(6)), agreement(range(60), range(60))
    assert few.value == many.value == 1.0
    assert few.high == many.high == 1.0
    assert few.low < 0.6
    assert many.low > 0.95
    assert agreement(range(6), range(0, -6, -1)).high > -0.6


def test_the_gain_over_another_ranking_is_paired():
    rng = np.random.default_rng(3)
    y = rng.normal(size=40)
    good, weak = y + 0.3 * rng.normal(size=40), y + 2 * rng.normal(size=40)
    gain = agreement_gain(good, weak, y)
    assert gain.value == pytest.approx(stats.kendalltau(good, y).statistic - stats.kendalltau(weak, y).statistic)
    assert gain.low > 0
    same = agreement_gain(good, good, y)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert agreement_gain(good, np.ones(40), y) is None


def test_a_useless_score_gains_nothing_about_as_often_as_it_should():
    """Two equally noisy rankings: their paired difference is said to be real in about 5 % of cases."""
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(150):
        y = rng.normal(size=20)
        gain = agreement_gain(y + rng.normal(size=20), y + rng.normal(size=20), y)
        false += gain.low > 0 or gain.high < 0
    assert false / 150 <= 0.10


def test_partial_tau_is_kendalls_formula_and_vanishes_for_a_copy_with_noise():
    rng = np.random.default_rng(5)
    x, y, z = rng.normal(size=(3, 25))
    xy, xz, yz = (stats.kendalltau(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_agreement(x, y, given=z).value == pytest.approx(expected)
    size = rng.normal(size=40)
    truth = size + 0.5 * rng.normal(size=40)
    follower, informed = size + 0.3 * rng.normal(size=40), truth + 0.3 * rng.normal(size=40)
    nothing, something = partial_agreement(follower, truth, given=size), partial_agreement(informed, truth, given=size)
    assert nothing.low < 0.1
    assert something.low > 0.2
    assert partial_agreement(size, truth, given=size) is None


def test_the_mean_agreement_of_seeds_is_the_mean():
    rng = np.random.default_rng(6)
    a, b, c = rng.normal(size=(3, 15))
    found = mean_agreement([(a, b), (a, c)])
    assert found.value == pytest.approx((kendall_tau(a, b) + kendall_tau(a, c)) / 2)
    assert found.low < found.value < found.high
    assert mean_agreement([]) is None


def test_bands_are_cut_where_the_tolerance_ends():
    assert equal_bands([100, 110, 111, 121, 300, 99], 0.1).tolist() == [0, 1, 1, 1, 2, 0]
    assert equal_bands([5.0, 5.0], 0.0).tolist() == [0, 0]
    assert equal_bands([], 0.1).tolist() == []


def test_percentiles_leave_out_the_undefined_and_keep_the_infinite():
    assert percentile_interval([math.nan, 1.0, 2.0, math.nan]) == (1.0, 2.0)
    assert percentile_interval([1.0] * 50 + [math.inf] * 50) == (1.0, math.inf)
    assert all(math.isnan(end) for end in percentile_interval([math.nan]))


def test_published_depth_table(data_root):
    """64 ResNets of three depths (DisWOT, CVPR 2023): what a cross-entropy training says of one with distillation."""
    with (data_root / "tabular" / "kd_depth_cifar100.csv").open() as file:
        rows = list(csv.DictReader(file))
    depths = [tuple(int(row[f"blocks_stage{stage}"]) for stage in (1, 2, 3)) for row in rows]
    kd = np.array([float(row["top1_kd_percent"]) for row in rows])
    ce = np.array([float(row["top1_ce_percent"]) for row in rows])
    macs, params = np.array([_resnet_cost(depth) for depth in depths]).T
    overall, of_params = agreement(ce, kd), agreement(params, kd)
    assert (round(overall.value, 3), round(of_params.value, 3)) == (0.836, 0.873)
    assert overall.low < 0.836 < overall.high
    # A block costs the same MACs in every stage, so the bands of equal MACs are those of equal total depth.
    bands = equal_bands(macs, 0.10)
    assert len(set(bands)) == len({sum(depth) for depth in depths}) == 10
    inside = agreement(ce, kd, within=bands)
    assert round(inside.value, 3) == 0.718
    assert round(kendall_tau(params, kd, within=bands), 3) == 0.884
    # The weakest band, of 15 blocks in all, is where "about .29" comes from.
    taus = {total: kendall_tau(ce[members], kd[members]) for total, members in _by_total(depths).items()}
    assert min(taus, key=lambda total: taus[total] if not math.isnan(taus[total]) else 2) == 15
    assert round(taus[15], 2) == 0.29
    gain = agreement_gain(ce, params, kd, within=bands)
    assert gain.value < 0  # the score adds nothing to the parameter count
    assert gain.low < 0
    assert partial_agreement(ce, kd, given=params).value == pytest.approx(0.490, abs=5e-4)


def _by_total(depths):
    totals = np.array([sum(depth) for depth in depths])
    return {int(total): totals == total for total in set(totals)}


def _resnet_cost(depth):
    """MACs and parameters of a CIFAR ResNet of basic blocks, widths 16, 32, 64, with 1x1 projections."""
    macs, params, wide = 32 * 32 * 9 * 3 * 16, 9 * 3 * 16 + 32, 16
    for blocks, width, side in zip(depth, (16, 32, 64), (32, 16, 8), strict=True):
        for _ in range(blocks):
            weights = 9 * (wide * width + width * width) + (wide * width if wide != width else 0)
            macs += side * side * weights
            params += weights + 4 * width + (2 * width if wide != width else 0)
            wide = width
    return macs + 6400, params + 6500
