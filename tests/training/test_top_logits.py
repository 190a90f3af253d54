"""The k largest logits: exact where k is K, and off by a stated divergence elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from kdnas.training.teacher_cache import restored, truncated, truncation_error


def logits(rows: int = 6, classes: int = 50) -> torch.Tensor:
    return 4 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))


def test_all_logits_come_back_to_the_bit():
    values = logits()
    assert torch.equal(restored(*truncated(values, 50), 50), values)
    assert truncation_error(values, 50) == 0.0


@pytest.mark.parametrize("top_k", [1, 5, 49])
def test_the_others_share_their_mass_evenly(top_k):
    values = logits()
    back = restored(*truncated(values, top_k), 50).double().numpy()
    for row, kept in zip(values.double().numpy(), back, strict=True):
        order = np.argsort(-row)
        np.testing.assert_array_equal(kept[order[:top_k]], row[order[:top_k]])
        tail = kept[order[top_k:]]
        assert np.ptp(tail) == 0
        assert logsumexp(tail) == pytest.approx(logsumexp(row[order[top_k:]]), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_error_is_the_divergence(temperature):
    values = logits()
    back = restored(*truncated(values, 5), 50)
    p, q = (softmax(each.double().numpy() / temperature, axis=1) for each in (values, back))
    expected = float((p * np.log(p / q)).sum(1).mean())
    assert truncation_error(values, 5, temperature=temperature) == pytest.approx(expected, rel=1e-6)
    assert expected > 0


def test_more_logits_lose_less():
    errors = [truncation_error(logits(), top_k) for top_k in (1, 2, 5, 10, 25, 49)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0, abs=1e-6)


def test_a_large_gap_does_not_overflow():
    values = torch.tensor([[3e4, -3e4, -3e4, -math.log(2.0) - 3e4]])
    back = restored(*truncated(values, 2), 4)
    assert torch.isfinite(back).all()
    assert truncation_error(values, 2) == pytest.approx(0, abs=1e-6)


def test_what_never_comes_has_no_part_in_the_others_mass():
    values = torch.tensor([[3.0, 1.0, 0.5, -math.inf], [2.0, 1.0, -math.inf, -math.inf]])
    kept, _ = truncated(values, 2)
    expected = torch.tensor([0.5 - math.log(2.0), -math.inf])
    assert torch.allclose(kept[:, -1], expected)
