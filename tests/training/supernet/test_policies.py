"""Shrinking policies as pure rules: fed with made-up measurements, no network in sight."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pydantic
import pytest

from kdnas.core.shrinking import FinishedStage, Ladders, ShrinkingRecord, Stage
from kdnas.core.space import SearchSpace
from kdnas.core.task import image_classification
from kdnas.errors import ConfigError, RunFolderError
from kdnas.registry import validation_problems
from kdnas.students import family_for
from kdnas.study.spaces import load_space
from kdnas.testing import PolicyConformance, suites
from kdnas.testing.policies import COSTS, play
from kdnas.training.supernet import SupernetSettings
from kdnas.training.supernet.policies import ShrinkingSettings, open_policy
from kdnas.training.supernet.policies._recorded import Recorded
from kdnas.training.supernet.shrinking_file import read_shrinking, write_shrinking
from kdnas.training.supernet.subnets import ElasticSpace

REPOSITORY = Path(__file__).resolve().parents[3]
TASK = image_classification((3, 32, 32), 10)


@functools.cache
def ladders_of(name: str) -> Ladders:
    space: SearchSpace = load_space(name, Path())
    return ElasticSpace(space, family_for(space.family, TASK)).ladders


@pytest.fixture(scope="module")
def resnet() -> Ladders:
    return ladders_of("cifar_resnet")


@pytest.fixture(scope="module")
def mobilenet() -> Ladders:
    return ladders_of("cifar_mobilenet")


TRUSTED = ("growing", "at random", "in turn", "together", "largest first")
LATER = {"largest first": 2.0, "together": 1.5}
"""Rates at which unlocking later wins the race, and of the other modes the sandwich rule."""


def after_race(history: list[FinishedStage]) -> list[FinishedStage]:
    return [item for item in history if not item.stage.name.startswith("race")]


@pytest.mark.parametrize("best", TRUSTED)
@pytest.mark.parametrize("panel", [0.0, 0.001])
def test_adaptive_goes_on_with_the_mode_that_gains_most(resnet, best, panel):
    history = play(open_policy(ShrinkingSettings(), resnet), rates={best: 1.2}, tick=0.001, panel=panel)
    race = [item for item in history if item not in after_race(history)]
    assert sum(item.spent for item in race) == pytest.approx(0.16, abs=0.025)
    tried = [item.stage.mode for item in race if item.stage.judged][1:]
    assert tried == [*TRUSTED, *reversed(TRUSTED)]
    assert len({item.stage.name for item in history}) == len(history)
    winner = after_race(history)[0].stage
    assert winner.mode == best
    assert max(winner.gains, key=winner.gains.__getitem__) == best
    assert set(winner.gains) == set(TRUSTED)
    assert winner.reason
    assert sum(item.spent for item in history) == pytest.approx(1.0)
    assert history[-1].stage.allowed == resnet.values
    if best != "largest first":
        assert len(after_race(history)) == 1
        assert (winner.in_turn, winner.sandwich) == (best == "in turn", best in ("in turn", "together"))
        assert winner.subnets == {"growing": 1, "at random": 1, "in turn": 8, "together": 4}[best]
        assert winner.growth == (1.0 if best == "growing" else 0.0)


def test_the_race_shows_what_the_largest_alone_is_worth_to_the_others(resnet):
    history = play(open_policy(ShrinkingSettings(), resnet), rates={"at random": 1.2}, tick=0.001)
    race = [item.stage for item in history if item.stage.mode == "largest first"]
    assert [stage.allowed == resnet.only_largest for stage in race] == [True, False, True, False]
    assert [stage.judged for stage in race] == [False, True, False, True]


@pytest.mark.parametrize(
    ("measure", "raced"),
    [
        *[({"panel": panel}, raced) for panel, raced in [(0.0035, 5), (0.0043, 4), (0.0056, 3), (0.0081, 0)]],
        *[({"step_share": step}, raced) for step, raced in [(0.0003, 5), (0.00044, 4), (0.00056, 3), (0.00082, 0)]],
    ],
)
def test_as_many_modes_race_as_the_budget_affords(resnet, measure, raced):
    """In 0.16 of the budget a quarter may be measuring, and a stage is worth forty steps."""
    history = play(open_policy(ShrinkingSettings(), resnet), rates={"at random": 1.2}, tick=0.001, **measure)
    assert [item.stage.mode for item in history if item.stage.judged][1 : raced + 1] == list(TRUSTED[:raced])
    stages = {5: 13, 4: 9, 3: 7, 0: 0}[raced]
    assert len(history) == stages + 1
    assert history[-1].stage.allowed == resnet.values
    if not raced:
        assert history[0].stage.mode == "growing"
        assert "too small" in history[0].stage.reason


@pytest.mark.parametrize("share", [0.16, 0.3])
@pytest.mark.parametrize("race_steps", [0.0, 5.0, 40.0])
def test_a_race_never_spends_more_than_its_share(resnet, share, race_steps):
    """Over budgets from a few steps to many thousands, steps of any size and panels of any price."""
    rng, raced = np.random.default_rng(3), 0
    settings = ShrinkingSettings(race_share=share, race_steps=race_steps)
    for largest, panel, smallest in itertools.product(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 5e-2), (0.0, 1e-5, 1e-3, 0.003, 0.01), (0.02, 0.5, 1.0)
    ):
        middle = 0.5 * (1 + smallest) * largest
        one_step = largest * (1 + smallest) + (settings.subnets - 2) * middle

        def cost(stage: Stage, largest: float = largest, smallest: float = smallest) -> float:
            count = 1 if stage.in_turn else stage.subnets
            return largest * float(rng.uniform(smallest, 1.0, count).sum())

        history = play(
            open_policy(settings, resnet), panel=panel, step_share=one_step, largest_share=largest, cost=cost
        )
        race = [item for item in history if item.stage.name.startswith("race")]
        assert sum(item.spent for item in race) <= share + 1e-9
        assert all(item.steps >= 1 for item in race)
        if race:
            raced += 1
            # Nor much less: what is set aside for a last step may be left.
            assert sum(item.spent for item in race) > share - settings.subnets * largest - 1e-9
            assert len(after_race(history)) >= 1
    assert raced >= 8


def test_a_space_of_one_network_is_trained_without_a_race():
    ladders = Ladders({"stage1.depth": (1,)}, {"stage1.depth": (100,)})
    (only,) = play(open_policy(ShrinkingSettings(), ladders))
    assert only.spent == pytest.approx(1.0)


def test_adaptive_unlocks_the_cheapest_first_and_everything_at_last(resnet):
    policy = open_policy(ShrinkingSettings(shortest_share=0.01, final_share=0.5, patience=100), resnet)
    history = play(policy, rates=LATER, tick=0.002)
    unlocking = after_race(history)
    names = [item.stage.name for item in unlocking]
    assert names[0] == "largest"
    assert unlocking[0].stage.allowed == resnet.only_largest
    assert names[1] == "1 depth"  # the cheapest, as measured
    assert names[-1] == "everything"
    assert unlocking[-1].stage.allowed == resnet.values
    assert sum(item.spent for item in history) == pytest.approx(1.0)
    assert unlocking[-1].spent >= 0.5 - 0.011  # the reserve of the last stage, up to one step
    assert unlocking[0].spent == pytest.approx(0.2, abs=0.011)
    for before, after in itertools.pairwise(unlocking):
        assert all(values == after.stage.allowed[name][: len(values)] for name, values in before.stage.allowed.items())
        assert after.stage.allowed != before.stage.allowed
        assert after.stage.probes
        assert after.stage.reason
    order = [name.partition(" ")[2] for name in names[1:-1]]
    assert order == sorted(order, key=COSTS.__getitem__)


def test_adaptive_ends_a_stage_that_stopped_improving(resnet):
    settings = ShrinkingSettings(shortest_share=0.03, final_share=0.5, patience=3, improvement=0.01, teaching_gap=0.05)
    history = after_race(play(open_policy(settings, resnet), accuracy=lambda spent: 0.9, tick=0.01, rates=LATER))
    assert history[0].steps == 4
    assert "neither subnet rose by more than 0.01 in 3 checks" in history[0].ended
    assert all(item.spent >= 0.03 - 1e-9 for item in history)
    assert history[-1].stage.name == "everything"  # which never ends for that reason


def test_adaptive_unlocks_the_rest_at_once_where_the_budget_is_short(resnet):
    history = after_race(play(open_policy(ShrinkingSettings(shortest_share=0.15), resnet), rates=LATER))
    assert [item.stage.name for item in history] == ["largest", "everything"]
    assert "budget leaves no stage" in history[1].stage.reason
    policy = open_policy(ShrinkingSettings(shortest_share=0.01, final_share=0.4), resnet)
    assert len(after_race(play(policy, measuring=0.001, rates=LATER))) > 3
    few = after_race(play(policy, measuring=0.02, rates=LATER))
    assert [item.stage.name for item in few] == ["largest", "everything"]


def test_the_largest_alone_is_left_as_soon_as_it_can_teach(resnet):
    policy = open_policy(ShrinkingSettings(teaching_gap=0.1), resnet)
    history = after_race(play(policy, accuracy=lambda spent: 0.75 + spent, rates=LATER))
    assert history[0].ended == "the largest subnet is within 0.1 of the teacher"
    assert history[0].spent < 0.1


def test_adaptive_settings_follow_the_gap(resnet):
    """Every probe has accuracy 0.5, the largest 1.0 like the teacher: the gap is 0.25."""
    options = {"subnets": 6, "final_share": 0.5, "teaching_gap": 0.0}
    far_policy, near_policy = (open_policy(ShrinkingSettings(wide_gap=wide, **options), resnet) for wide in (0.2, 0.5))
    far, near = (after_race(play(each, lambda spent: 1.0, rates=LATER))[1].stage for each in (far_policy, near_policy))
    assert far.gap == near.gap == pytest.approx(0.25)
    assert (far.learning_rate, far.subnets, far.kd_weight) == (1.0, 6, 1.0)
    assert (near.learning_rate, near.subnets, near.kd_weight) == (0.75, 4, 0.75)
    assert near.sandwich


@pytest.mark.parametrize(
    ("policy", "drawn"),
    [("adaptive", {"front"}), ("sandwich", {"front"}), ("random", {"uniform"}), ("once_for_all", {"uniform"})],
)
def test_random_subnets_are_drawn_near_the_front_where_that_is_asked_for(resnet, policy, drawn):
    history = play(open_policy(ShrinkingSettings(policy=policy, sampling="front"), resnet))
    assert {item.stage.sampling for item in history if item.stage.allowed != resnet.only_largest} == drawn


def test_by_choice_one_choice_at_a_time(resnet):
    policy = open_policy(ShrinkingSettings(unlock_by="choice"), resnet)
    history = play(policy, rates=LATER)
    first = history.index(after_race(history)[0])
    assert len(policy.unlocks_to_probe(history[: first + 1])) == len([v for v in resnet.values.values() if len(v) > 1])


class OnCarriedSpaces(PolicyConformance):
    """Of a new policy this is asked at once."""

    space = "cifar_resnet"

    @property
    def ladders(self) -> Ladders:
        return ladders_of(self.space)


class OnMobilenets(OnCarriedSpaces):
    space = "cifar_mobilenet"


globals().update(suites(OnCarriedSpaces))
globals().update({f"{name}OnMobilenets": suite for name, suite in suites(OnMobilenets).items()})


@pytest.mark.parametrize("name", ["once_for_all", "sandwich", "random", "delayed"])
def test_baselines_measure_nothing(name, resnet):
    policy = open_policy(ShrinkingSettings(policy=name), resnet)
    assert not policy.unlocks_to_probe([])
    history = play(policy)
    assert not any(item.stage.watched or item.stage.judged for item in history)
    assert sum(item.spent for item in history) == pytest.approx(1.0)


def test_settings_of_a_policy_stand_beside_those_of_all():
    settings = ShrinkingSettings(race_share=0.3, subnets=5)
    assert (settings.options["race_share"], settings.options["patience"], settings.subnets) == (0.3, 2, 5)
    assert ShrinkingSettings(**settings.model_dump()) == settings
    # A study may change its policy alone, and records of earlier versions state every option with each policy.
    assert ShrinkingSettings(policy="sandwich", race_share=0.3) == ShrinkingSettings(policy="sandwich")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"policy": "adoptive"}, "shrinking.policy: no shrinking policy is .* 'adoptive'; did you mean 'adaptive'"),
        ({"race_shaer": 0.1}, "shrinking.race_shaer: unknown key; did you mean 'race_share'"),
        (
            {"policy": "random", "sampel": 1},
            r"shrinking.sampel: unknown key.*\(allowed: check_share, front",
        ),
        ({"race_share": 2}, "shrinking.race_share: must be at most 1, got 2"),
        ({"subnets": 1}, "shrinking.subnets: must be at least 2, got 1"),
    ],
)
def test_wrong_settings_are_told_with_their_place(section, expected):
    with pytest.raises(pydantic.ValidationError) as caught:
        SupernetSettings.model_validate({"shrinking": section})
    (problem,) = validation_problems(caught.value, SupernetSettings)
    assert re.search(expected, str(problem))


def test_the_phases_of_once_for_all(resnet, mobilenet):
    stages = [item.stage for item in play(open_policy(ShrinkingSettings(policy="once_for_all"), mobilenet), tick=0.001)]
    assert [stage.name for stage in stages] == ["largest", "kernel size", "depth 1", "depth 2", "width 1", "everything"]
    assert [stage.subnets for stage in stages] == [1, 1, 2, 2, 4, 4]
    assert [stage.learning_rate for stage in stages] == [1.0, 0.37, 0.031, 0.092, 0.031, 0.092]
    assert [stage.share for stage in stages][:5] == pytest.approx([x / 1205 for x in (180, 125, 50, 250, 100)])
    assert stages[1].allowed["stage2.kernel"] == (7, 5, 3)
    assert stages[1].allowed["stage2.depth"] == (3,)
    assert stages[2].allowed["stage2.depth"] == (3, 2)
    assert stages[3].allowed["stage2.depth"] == (3, 2, 1)
    assert [stage.sort_channels for stage in stages] == [False, False, False, False, True, False]
    names = [
        item.stage.name for item in play(open_policy(ShrinkingSettings(policy="once_for_all"), resnet), tick=0.001)
    ]
    assert names == ["largest", "depth 1", "depth 2", "width 1", "everything"]


def test_the_other_baselines(resnet):
    (sandwich,) = play(open_policy(ShrinkingSettings(policy="sandwich", subnets=3), resnet))
    assert (sandwich.stage.subnets, sandwich.stage.sandwich, sandwich.stage.sampling) == (3, True, "uniform")
    (random,) = play(open_policy(ShrinkingSettings(policy="random"), resnet))
    assert (random.stage.subnets, random.stage.sandwich) == (1, False)
    alone, rest = play(open_policy(ShrinkingSettings(policy="delayed"), resnet))
    assert alone.stage.allowed == resnet.only_largest
    assert alone.spent == pytest.approx(0.5, abs=0.011)
    assert rest.stage.sort_channels


def recorded(ladders: Ladders) -> ShrinkingRecord:
    stages = tuple(play(open_policy(ShrinkingSettings(), ladders), rates=LATER))
    return ShrinkingRecord("adaptive", "cifar_resnet", "resnet", 10**12, stages)


def test_a_recorded_shrinking_is_followed(resnet, tmp_path):
    shrinking = recorded(resnet)
    write_shrinking(tmp_path / "shrinking.yaml", shrinking)
    again = read_shrinking(tmp_path / "shrinking.yaml")
    assert again == shrinking
    # Other accuracies, same stages.
    assert [
        (item.stage, item.steps, item.ended)
        for item in play(Recorded(resnet, ShrinkingSettings(), again), lambda spent: 0.1)
    ] == [(item.stage, item.steps, item.ended) for item in shrinking.stages]


def test_a_shrinking_for_another_space_is_refused(resnet, mobilenet):
    shrinking = recorded(resnet)
    with pytest.raises(ConfigError, match="are the choices"):
        Recorded(mobilenet, ShrinkingSettings(), shrinking)
    plain = shrinking.as_dict()
    plain["stages"][0]["allowed"]["stem_width"] = [33]
    with pytest.raises(ConfigError, match=r"stem_width: 33 is no value of the space \(allowed: 32, 24, 16, 8\)"):
        Recorded(resnet, ShrinkingSettings(), ShrinkingRecord.from_dict(plain))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("a: 1", "is no record of a supernet's shrinking"),
        ("- 1", "is no record of a supernet's shrinking"),
        ("format: kdnas shrinking 1\npolicy: x", "is damaged"),
        ("format: kdnas shrinking 1\nstages: [{name: 1}]", "is damaged"),
        ("format: kdnas shrinking 1\nstages: [3]", "is damaged"),
        ("format: kdnas shrinking 1\nstages: 3", "is damaged"),
    ],
)
def test_a_damaged_shrinking_file_is_refused(tmp_path, text, message):
    path = tmp_path / "shrinking.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_shrinking(path)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "studies").glob("*/results/**/*shrinking.yaml")), ids=str)
def test_files_of_earlier_versions_are_read(path, tmp_path):
    """They were called schedule.yaml, and a schedule inside."""
    record = read_shrinking(path)
    assert record.policy == "adaptive"
    first, _, rest = path.read_text().partition("\n")
    assert first in ("format: kdnas schedule 1", "format: kdnas shrinking 1")
    (tmp_path / "schedule.yaml").write_text(f"format: kdnas schedule 1\n{rest}")
    assert read_shrinking(tmp_path) == record


def test_files_that_are_not_there(resnet, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_shrinking(tmp_path / "none.yaml")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_shrinking(tmp_path / "none" / "shrinking.yaml", recorded(resnet))
