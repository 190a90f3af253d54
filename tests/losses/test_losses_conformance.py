"""Every loss of the registry keeps its family's contract; and what single losses have beyond it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdnas.errors import ConfigError
from kdnas.losses import LOSSES
from kdnas.nn.taps import OutputShapes
from kdnas.testing import LossConformance, suites
from kdnas.testing.losses import CLASSES, PAIRS, STUDENT, TEACHER

DIFFERS = {"zero_when_equal": False}
"""Cross entropies, which count the teacher's own entropy, masses, and losses with random maps before them."""
OTHERS = (
    "hard",
    "nkd",
    "wsld",
    "ttm",
    "contrastive",
    "crd",
    "correlation",
    "srrl",
    "hint",
    "vid",
    "factor",
    "review",
    "exits",
    "semantic",
)
ENDING_ALIKE = replace(TEACHER, stages=((4, 8, 8), (16, 2, 2)))
globals().update(
    suites(
        LossConformance,
        **dict.fromkeys((*OTHERS, "sem_ckd"), DIFFERS),
        cat_kd={"refused": frozenset({"layers", "layers from maps"})},
        sim_kd={"refused": frozenset({"student deeper", "layers", "layers from maps"}), "student": ENDING_ALIKE},
    )
)


@pytest.mark.parametrize("name", ["hint", "cosine"])
def test_adapters_appear_where_the_widths_differ_and_only_there(name: str) -> None:
    adapted = list(LOSSES.build(name, STUDENT, TEACHER).parameters())
    if name == "hint":  # its regressor is part of the method, whatever the widths
        assert adapted
        return
    assert [tuple(p.shape) for p in adapted] == [(16, 6)]
    assert not list(LOSSES.build(name, TEACHER, TEACHER).parameters())


@pytest.mark.parametrize("name", ["hidden", "hidden_cosine", "patient", "statistics"])
def test_layers_of_other_widths_share_one_adapter(name: str) -> None:
    student, teacher = PAIRS["layers"]
    assert [tuple(p.shape) for p in LOSSES.build(name, student, teacher).parameters()] == [(16, 8)]
    assert not list(LOSSES.build(name, teacher, teacher).parameters())


@pytest.mark.parametrize("name", [name for name in LOSSES.names() if not LOSSES.get(name).needs <= {"logits"}])
def test_a_loss_that_cannot_match_says_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        LOSSES.build(name, STUDENT, OutputShapes(CLASSES))
