"""The forecast of full scores: against the closed form, and on a published table of brief trainings."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from kdnas.core.forecast import left_out, regressed
from kdnas.core.rank import kendall_tau

TABLE = Path(os.environ.get("KDNAS_DATA", "../shared/data")) / "tabular" / "kd_brief_shufflenet_cifar100.csv"


def students(count, seed=0):
    rng = np.random.default_rng(seed)
    cost, short = np.exp(rng.normal(size=(count, 1))), rng.normal(size=count)
    return short, cost, 0.3 + 0.7 * short + 0.4 * np.log(cost[:, 0]) + 0.01 * rng.normal(size=count)


def test_with_many_students_it_is_least_squares():
    short, cost, full = students(400)
    known = np.where(np.arange(400) < 300, full, np.nan)
    design = np.column_stack([np.ones(400), short, np.log(cost)])
    least = design @ np.linalg.lstsq(design[:300], full[:300], rcond=None)[0]
    found = regressed(short, known, cost)
    assert np.abs(found - least).max() < 0.01


def test_one_student_moves_all_by_what_it_changed():
    short = np.array([0.1, 0.2, 0.4, 0.3])
    found = regressed(short, np.array([np.nan, 0.5, np.nan, np.nan]), np.zeros((4, 0)))
    assert np.allclose(found, short + 0.3, atol=1e-3)


def test_a_left_out_forecast_does_not_know_its_own_score():
    short, cost, full = students(12)
    moved = full.copy()
    moved[3] += 100.0
    assert left_out(short, full, cost)[3] == pytest.approx(left_out(short, moved, cost)[3])


@pytest.mark.skipif(not TABLE.is_file(), reason="the published tables are not here")
def test_brief_score_and_macs_rank_better_together_than_either():
    rows = list(csv.DictReader(TABLE.open()))
    column = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    full, macs = column["full_nokd_test_accuracy"], column["macs"]
    for loss in ("kd", "nst", "attention", "nokd"):
        brief = column[f"{loss}_1of9_valid_accuracy"]
        together = kendall_tau(left_out(brief, full, macs[:, None]), full)
        assert together > max(kendall_tau(brief, full), kendall_tau(macs, full)) + 0.03, loss
