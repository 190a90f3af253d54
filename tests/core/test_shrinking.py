"""Ladders, unlocks and the rules of shrinking, against values worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
from toy_space import LADDERS, SPACE, macs

from kdnas.core.shrinking import (
    Check,
    FinishedStage,
    Panel,
    Probe,
    ShrinkingRecord,
    Stage,
    Unlock,
    cheapest,
    dimension_of,
    gains,
    stalled,
    teacher_gap,
)


def test_ladders_go_down_from_the_largest_subnet():
    assert LADDERS.values == {
        "stem_width": (8, 4, 2),
        "stage1.depth": (2, 1, 0),
        "stage1.width": (16, 4),
        "stage1.skip": ("projection", "identity", "none"),
    }
    assert LADDERS.largest == {"stem_width": 8, "stage1.depth": 2, "stage1.width": 16, "stage1.skip": "projection"}
    assert LADDERS.macs["stage1.depth"] == (853, 469, 80)
    brute_force = max(macs(assignment) for assignment in SPACE.enumerate())
    assert macs(LADDERS.largest) == brute_force == 853


def test_the_smallest_subnet_prefers_the_first_rung_among_equals():
    smallest = LADDERS.smallest(LADDERS.values)
    assert smallest == {"stem_width": 2, "stage1.depth": 0, "stage1.width": 4, "stage1.skip": "identity"}
    assert macs(smallest) == min(macs(assignment) for assignment in SPACE.enumerate())
    assert LADDERS.smallest(LADDERS.only_largest) == LADDERS.largest


def test_the_panel_is_the_smallest_the_middle_and_the_largest():
    middle = {"stem_width": 4, "stage1.depth": 1, "stage1.width": 4, "stage1.skip": "identity"}
    assert LADDERS.panel == (LADDERS.smallest(LADDERS.values), middle, LADDERS.largest)


def test_dimensions():
    names = {"stem_width": "width", "head_width": "width", "stage2.width": "width", "stage1.expand": "bottleneck"}
    names |= {"stage1.kernel": "kernel size", "stage3.depth": "depth", "resolution": "resolution"}
    assert {name: dimension_of(name) for name in names} == names


def test_unlocks_take_the_next_rung_of_a_dimension_or_of_a_choice():
    allowed = LADDERS.only_largest
    by_dimension = LADDERS.unlocks(allowed, "dimension")
    assert by_dimension[0] == Unlock("width", {"stem_width": 4, "stage1.width": 4})
    assert [unlock.dimension for unlock in by_dimension] == ["width", "depth", "skip"]
    assert [unlock.dimension for unlock in LADDERS.unlocks(allowed, "choice")] == list(LADDERS.values)
    assert LADDERS.unlocks_left(allowed, "dimension") == 2 + 2 + 2
    assert LADDERS.unlocks_left(allowed, "choice") == 2 + 2 + 1 + 2
    count = 0
    while unlocks := LADDERS.unlocks(allowed, "dimension"):
        allowed, count = unlocks[-1].apply(allowed), count + 1
        assert LADDERS.unlocks_left(allowed, "dimension") == 6 - count
    assert allowed == LADDERS.values


def test_descending():
    down = LADDERS.descend(LADDERS.only_largest, ("depth",), 1)
    assert down["stage1.depth"] == (2, 1)
    assert down["stem_width"] == (8,)
    assert LADDERS.descend(down, ("depth",))["stage1.depth"] == (2, 1, 0)
    assert LADDERS.descend(down) == LADDERS.values


def probe(dimension: str, lost: float, saved: float) -> Probe:
    return Probe(dimension, {}, 0.9 - lost, lost, saved)


def test_the_cheapest_loses_least_per_mac_saved():
    assert probe("depth", 0.1, 0.5).cost == pytest.approx(0.2)
    assert probe("depth", -0.1, 0.5).cost == 0
    assert probe("skip", 0.0, 0.0).cost == math.inf
    probes = [probe("depth", 0.10, 0.5), probe("width", 0.03, 0.1), probe("skip", 0.0, 0.0)]
    assert cheapest(probes).dimension == "depth"
    assert (
        cheapest([*probes, probe("kernel size", -0.01, 0.1), probe("resolution", 0.0, 0.4)]).dimension == "resolution"
    )
    assert cheapest([probe("skip", 0.1, 0.0), probe("bottleneck", 0.0, -0.1)]).dimension == "skip"


def checks(*pairs: tuple[float, float]) -> list[Check]:
    return [Check(i, i / 10, largest, smallest) for i, (largest, smallest) in enumerate(pairs)]


def test_a_stage_stalls_when_neither_subnet_rises():
    rising_small = checks((0.9, 0.1), (0.9, 0.2), (0.9, 0.3))
    assert not stalled(rising_small, patience=1, improvement=0.01)
    assert not stalled(rising_small, patience=2, improvement=0.01)
    flat = checks((0.9, 0.3), (0.905, 0.25), (0.9, 0.31))
    assert stalled(flat, patience=2, improvement=0.01)
    assert not stalled(flat, patience=2, improvement=0.002)
    assert not stalled(flat, patience=3, improvement=0.01)  # too few to tell
    falling = checks((0.9, 0.5), (0.8, 0.4))
    assert stalled(falling, patience=1, improvement=0.0)
    assert not stalled([], patience=1, improvement=0.0)


def test_the_gap_is_a_share_of_the_teachers_accuracy():
    assert teacher_gap(0.8, 0.8, 0.4) == pytest.approx(0.25)
    assert teacher_gap(0.8, 0.9, 0.9) == 0
    assert teacher_gap(0.0, 0.9, 0.9) == 0


def judged(mode: str, spent: float, loss: float | None) -> FinishedStage:
    panel = None if loss is None else Panel(0.1, 0.2, 0.3, loss)
    return FinishedStage(Stage(mode, {}, spent, mode=mode), 0, 1, spent, "spent", panel=panel)


GAINS = {"a": 3 / 0.4, "b": 1 / 0.2, "c": -1 / 0.1}
"""Halvings of the loss per share of the budget, in the test below."""


def test_gains_are_how_often_the_loss_was_halved_per_share_spent_on_a_mode():
    history = [
        judged("", 0.1, 8.0),  # before the first panel nothing is known
        judged("a", 0.1, 4.0),
        judged("b", 0.1, None),  # not judged by itself: what it spent counts for what follows
        judged("b", 0.1, 2.0),
        judged("a", 0.3, 0.5),
        judged("", 0.2, 0.1),  # no mode is tried
        judged("c", 0.1, 0.2),
    ]
    found = gains(history)
    assert list(found) == ["a", "b", "c"]
    assert found == pytest.approx({mode: halvings * math.log(2) for mode, halvings in GAINS.items()})
    assert gains(history[:1]) == {}


def test_random_subnets_may_grow_over_a_part_of_the_stage():
    stage = Stage("everything", LADDERS.values, 1.0, growth=0.5)
    assert [stage.most_macs(10, 30, done) for done in (0.0, 0.25, 0.5, 0.9)] == [10, 20, 30, 30]
    assert Stage("everything", LADDERS.values, 1.0).most_macs(10, 30, 0.0) == 30


def record() -> ShrinkingRecord:
    probes = (
        Probe("depth", {"stage1.depth": 1}, 0.8, 0.1, 0.45),
        Probe("skip", {"stage1.skip": "none"}, 0.9, 0.0, 0.0),
    )
    largest = Stage("largest", LADDERS.only_largest, 0.3, judged=True, mode="largest first")
    first = FinishedStage(largest, 0, 12, 0.31, "spent", (Check(12, 0.3, 0.9, 0.9),), Panel(0.1, 0.5, 0.9, 1.5))
    allowed = {**LADDERS.only_largest, "stage1.depth": (2, 1)}
    stage = Stage(
        "1 depth", allowed, 0.7, 0.5, "stage", 3, sandwich=True, in_turn=True, sampling="front", growth=0.25,
        kd_weight=0.75, sort_channels=True, watched=True, reason="cheapest", gap=0.1, gains={"in turn": 2.0},
        probes=probes,
    )  # fmt: skip
    return ShrinkingRecord("adaptive", "toy", "resnet", 10**15, (first, FinishedStage(stage, 12, 30, 0.69, "over")))


def test_a_record_survives_its_plain_form():
    plain = json.loads(json.dumps(record().as_dict(), allow_nan=False))
    assert ShrinkingRecord.from_dict(plain) == record()
    assert plain["stages"][1]["probes"][0]["cost"] == pytest.approx(0.1 / 0.45)
    assert plain["stages"][1]["probes"][1]["cost"] is None


@pytest.mark.parametrize("damage", [("annealing", "daily"), ("sampling", "best"), ("growth", 1.5), ("colour", 1)])
def test_a_damaged_plain_form_is_refused(damage):
    plain = record().as_dict()
    plain["stages"][0][damage[0]] = damage[1]
    with pytest.raises((ValueError, TypeError)):
        ShrinkingRecord.from_dict(plain)


def test_what_an_earlier_version_called_accuracies_is_read():
    plain = record().as_dict()
    probe = plain["stages"][1]["probes"][0]
    probe["accuracy"], probe["accuracy_lost"] = probe.pop("score"), probe.pop("score_lost")
    assert ShrinkingRecord.from_dict(plain) == record()
