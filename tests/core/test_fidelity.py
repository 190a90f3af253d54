"""Fidelities: their amount, their words, and records that say less than today's."""

from __future__ import annotations

import pytest

from kdnas.core.fidelity import Fidelity


@pytest.mark.parametrize(
    ("fidelity", "amount", "words", "key"),
    [
        (Fidelity(6), 6.0, "6 epochs", "6x1"),
        (Fidelity(3, resolution_fraction=0.5), 0.75, "3 epochs at 50 % of the resolution", "3x1@0.5"),
        (
            Fidelity(1, 0.25, "supernet", 0.5),
            0.0625,
            "1 epoch of 25 % of the data at 50 % of the resolution from shared weights",
            "1x0.25@0.5-shared",
        ),
        (Fidelity(0, 1.0, "supernet"), 0.0, "shared weights", "0x1-shared"),
        (Fidelity(0, 1.0, "inherited"), 0.0, "inherited weights", "0x1-inherited"),
        (Fidelity(2, 1.0, "inherited"), 2.0, "2 epochs from inherited weights", "2x1-inherited"),
    ],
)
def test_what_a_fidelity_amounts_to(fidelity: Fidelity, amount: float, words: str, key: str) -> None:
    assert (fidelity.amount, fidelity.words, fidelity.key) == (amount, words, key)
    assert Fidelity.from_dict(fidelity.as_dict()) == fidelity


def test_records_from_before_there_was_a_choice_are_of_the_full_resolution() -> None:
    assert Fidelity.from_dict({"epochs": 3, "data_fraction": 0.5}) == Fidelity(3, 0.5, "random", 1.0)
    assert Fidelity.from_dict({"epochs": 0, "data_fraction": 1.0, "weights": "shared"}).resolution_fraction == 1.0
