"""Losses that compare rows of probabilities, against scipy's relative entropy in float64, rows weighted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax

from kdnas.losses import LOSSES
from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs, OutputShapes

ROWS, OUTPUTS = 40, 11
SHAPES = OutputShapes(OUTPUTS)
Floats = NDArray[np.float64]


def kl(p: Floats, q: Floats) -> Floats:
    return rel_entr(p, q).sum(axis=1)


def mixed(p: Floats, q: Floats, share: float) -> Floats:
    return share * p + (1 - share) * q


def jsd(q: Floats, p: Floats, beta: float) -> Floats:
    middle = mixed(p, q, beta)
    return beta * kl(p, middle) + (1 - beta) * kl(q, middle)


# By loss and options: temperature, and the divergence of the student's q and the teacher's p.
CASES: list[tuple[str, dict[str, object], float, Callable[[Floats, Floats], Floats]]] = [
    ("reverse_kl", {}, 1.0, kl),
    ("reverse_kl", {"temperature": 3.0}, 3.0, lambda q, p: 9 * kl(q, p)),
    ("jensen_shannon", {}, 1.0, lambda q, p: jsd(q, p, 0.5)),
    ("jensen_shannon", {"beta": 0.9, "temperature": 2.0}, 2.0, lambda q, p: jsd(q, p, 0.9)),
    ("skew_kl", {}, 1.0, lambda q, p: kl(p, mixed(p, q, 0.1))),
    ("skew_kl", {"skew": 0.3, "reverse": True}, 1.0, lambda q, p: kl(q, mixed(q, p, 0.3))),
    ("hard", {}, 1.0, lambda q, p: -np.log(q[np.arange(len(q)), p.argmax(axis=1)])),
]


def logits(seed: int) -> torch.Tensor:
    return 4 * torch.randn(ROWS, OUTPUTS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "options", "temperature", "expected"), CASES)
def test_a_loss_is_the_mean_of_its_rows_by_their_weights(
    name: str,
    options: dict[str, object],
    temperature: float,
    expected: Callable[[Floats, Floats], Floats],
    weighted: bool,
) -> None:
    ours, theirs = logits(1), logits(2)
    weights = torch.rand(ROWS, generator=torch.Generator().manual_seed(3)).round(decimals=1) if weighted else None
    rows = Rows(ours, torch.zeros(ROWS, dtype=torch.int64), weights)
    value = LOSSES.build(name, SHAPES, SHAPES, **options)(Outputs(ours), Outputs(theirs), rows)
    q, p = (softmax(each.double().numpy() / temperature, axis=1) for each in (ours, theirs))
    counted = np.ones(ROWS) if weights is None else weights.double().numpy()
    assert float(value) == pytest.approx((counted * expected(q, p)).sum() / counted.sum(), rel=1e-5)


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "skew_kl"])
def test_what_both_rule_out_costs_nothing(name: str) -> None:
    """Tokens that are masked out have infinitely low logits."""
    ours, theirs = logits(1).requires_grad_(), logits(2)
    loss = LOSSES.build(name, SHAPES, SHAPES)
    masked = torch.arange(OUTPUTS) > 7
    few = loss(Outputs(ours[:, :8]), Outputs(theirs[:, :8]), Rows(ours[:, :8], torch.zeros(ROWS).long()))
    hidden = [Outputs(each.masked_fill(masked, -torch.inf)) for each in (ours, theirs)]
    all_of_them = loss(*hidden, Rows(hidden[0].logits, torch.zeros(ROWS).long()))
    assert float(all_of_them.detach()) == pytest.approx(float(few.detach()), rel=1e-5)
    gradients = [torch.autograd.grad(value, ours)[0] for value in (all_of_them, few)]
    torch.testing.assert_close(*gradients)


def test_jensen_shannon_nears_both_divergences() -> None:
    """As its authors say: over beta the forward one for a small beta, over 1 - beta the reverse one for a large one."""
    ours, theirs = logits(1) / 4, logits(2) / 4
    rows = Rows(ours, torch.zeros(ROWS).long())
    low, high = (
        float(LOSSES.build("jensen_shannon", SHAPES, SHAPES, beta=beta)(Outputs(ours), Outputs(theirs), rows))
        for beta in (0.001, 0.999)
    )
    forward = float(LOSSES.build("kd", SHAPES, SHAPES, temperature=1.0)(Outputs(ours), Outputs(theirs), rows))
    reverse = float(LOSSES.build("reverse_kl", SHAPES, SHAPES)(Outputs(ours), Outputs(theirs), rows))
    assert low / 0.001 == pytest.approx(forward, rel=0.02)
    assert high / 0.001 == pytest.approx(reverse, rel=0.02)
