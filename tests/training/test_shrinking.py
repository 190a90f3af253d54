"""Shrinking policies as pure rules: fed with made-up measurements, no network in sight."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from kdnas.core.schedule import Check, FinishedStage, Ladders, Probe, Schedule
from kdnas.core.space import SearchSpace
from kdnas.core.task import ImageTask
from kdnas.errors import ConfigError, RunFolderError
from kdnas.students import STUDENTS
from kdnas.study.spaces import load_space
from kdnas.training.schedule_file import read_schedule, write_schedule
from kdnas.training.shrinking import Policy, Recorded, Shrinking, Situation, policy_of
from kdnas.training.subnets import ElasticSpace

TASK = ImageTask((3, 32, 32), 10)


def ladders_of(name: str) -> Ladders:
    space: SearchSpace = load_space(name, Path())
    elastic = ElasticSpace(space, STUDENTS.build(space.family), TASK)
    return Ladders.of(elastic.space, elastic.price)


@pytest.fixture(scope="module")
def resnet() -> Ladders:
    return ladders_of("cifar_resnet")


@pytest.fixture(scope="module")
def mobilenet() -> Ladders:
    return ladders_of("cifar_mobilenet")


COSTS = {"depth": 0.05, "width": 0.1, "bottleneck": 0.3, "skip": 0.2, "kernel size": 0.01, "squeeze_excite": 0.02}


def play(
    policy: Policy,
    accuracy: Callable[[float], float] = lambda spent: spent,
    tick: float = 0.01,
    measuring: float = 0.0,
) -> list[FinishedStage]:
    """Let a policy decide a whole training in which steps spend `tick` and are checks, and probes `measuring`."""
    history: list[FinishedStage] = []
    spent, step = 0.0, 0
    while True:
        probes = tuple(
            Probe(unlock.dimension, unlock.adds, 0.5, COSTS[unlock.dimension] * 0.1, 0.1)
            for unlock in policy.to_probe(history)
        )
        before = spent
        spent += measuring if probes else 0.0
        stage = policy.next_stage(Situation(tuple(history), spent, 1.0, probes))
        if stage is None or spent >= 1.0:
            return history
        first, checks, ended = step, [], None
        while ended is None and spent < 1.0:
            step, spent = step + 1, round(spent + tick, 6)
            checks.append(Check(step, spent, accuracy(spent), accuracy(spent) / 2))
            ended = policy.verdict(stage, step - first, spent - before, checks, 1.0)
        history.append(FinishedStage(stage, first, step - first, spent - before, ended or "budget", tuple(checks)))


def test_adaptive_unlocks_the_cheapest_first_and_everything_at_last(resnet):
    policy = policy_of(Shrinking(shortest_share=0.01, final_share=0.5), resnet)
    history = play(policy)
    names = [item.stage.name for item in history]
    assert names[0] == "largest"
    assert history[0].stage.allowed == resnet.only_largest
    assert names[1] == "1 depth"  # the cheapest, as measured
    assert names[-1] == "everything"
    assert history[-1].stage.allowed == resnet.values
    assert sum(item.spent for item in history) == pytest.approx(1.0)
    assert history[-1].spent >= 0.5 - 0.011  # the reserve of the last stage, up to one step
    assert history[0].spent == pytest.approx(0.2, abs=0.011)
    for before, after in itertools.pairwise(history):
        assert all(values == after.stage.allowed[name][: len(values)] for name, values in before.stage.allowed.items())
        assert after.stage.allowed != before.stage.allowed
        assert after.stage.probes
        assert after.stage.reason
    order = [name.partition(" ")[2] for name in names[1:-1]]
    assert order == sorted(order, key=COSTS.__getitem__)


def test_adaptive_ends_a_stage_that_stopped_improving(resnet):
    settings = Shrinking(shortest_share=0.03, final_share=0.5, patience=3, improvement=0.01, teaching_gap=0.05)
    history = play(policy_of(settings, resnet), accuracy=lambda spent: 0.9)
    assert history[0].steps == 4
    assert "neither subnet rose by more than 0.01 in 3 checks" in history[0].ended
    assert all(item.spent >= 0.03 - 1e-9 for item in history)
    assert history[-1].stage.name == "everything"  # which never ends for that reason
    assert history[-1].ended == "its share of the budget is spent"


def test_adaptive_unlocks_the_rest_at_once_where_the_budget_is_short(resnet):
    history = play(policy_of(Shrinking(shortest_share=0.15), resnet))
    assert [item.stage.name for item in history] == ["largest", "everything"]
    assert "budget leaves no stage" in history[1].stage.reason
    settings = Shrinking(shortest_share=0.01, final_share=0.5)
    assert len(play(policy_of(settings, resnet), measuring=0.002)) > 3
    assert [item.stage.name for item in play(policy_of(settings, resnet), measuring=0.02)] == ["largest", "everything"]


def test_the_largest_alone_is_left_as_soon_as_it_can_teach(resnet):
    history = play(policy_of(Shrinking(teaching_gap=0.1), resnet), accuracy=lambda spent: 0.85 + spent)
    assert history[0].ended == "the largest subnet is within 0.1 of the teacher"
    assert history[0].steps == 5


def test_adaptive_settings_follow_the_gap(resnet):
    """Every probe has accuracy 0.5, the largest 1.0 like the teacher: the gap is 0.25."""
    options = {"subnets": 6, "final_share": 0.5, "teaching_gap": 0.0}
    history = play(policy_of(Shrinking(wide_gap=0.2, **options), resnet), accuracy=lambda spent: 1.0)
    assert [item.stage.gap for item in history[:2]] == [None, pytest.approx(0.25)]
    far = history[1].stage
    assert (far.learning_rate, far.subnets, far.kd_weight) == (1.0, 6, 1.0)
    near = play(policy_of(Shrinking(wide_gap=0.5, **options), resnet), accuracy=lambda spent: 1.0)[1].stage
    assert (near.learning_rate, near.subnets, near.kd_weight) == (0.65, 5, 0.75)
    assert near.sandwich
    assert history[0].stage.subnets == 1
    assert not history[0].stage.sandwich


def test_channels_are_sorted_until_a_width_is_unlocked(mobilenet):
    history = play(policy_of(Shrinking(shortest_share=0.005, final_share=0.5), mobilenet), tick=0.0025)
    sorted_at = [item.stage.sort_channels for item in history]
    widths_locked = [
        all(len(values) == 1 for name, values in item.stage.allowed.items() if name.endswith(("width", "expand")))
        for item in history
    ]
    assert sorted_at == [False, *widths_locked[:-1]]
    assert sum(sorted_at) >= 3


def test_by_choice_one_choice_at_a_time(resnet):
    policy = policy_of(Shrinking(unlock_by="choice"), resnet)
    (first,) = play(policy_of(Shrinking(shortest_share=1.0, first_share=1.0, final_share=0.0), resnet))[:1]
    assert len(policy.to_probe([first])) == len([v for v in resnet.values.values() if len(v) > 1])


@pytest.mark.parametrize("name", ["once_for_all", "sandwich", "random", "delayed"])
def test_baselines_spend_the_budget_and_allow_everything_at_last(name, resnet, mobilenet):
    for ladders in (resnet, mobilenet):
        policy = policy_of(Shrinking(policy=name), ladders)
        assert policy.name == name
        assert not policy.checks
        assert not policy.to_probe([])
        history = play(policy)
        assert sum(item.spent for item in history) == pytest.approx(1.0)
        assert history[-1].stage.allowed == ladders.values


def test_the_phases_of_once_for_all(resnet, mobilenet):
    stages = [item.stage for item in play(policy_of(Shrinking(policy="once_for_all"), mobilenet), tick=0.001)]
    assert [stage.name for stage in stages] == ["largest", "kernel size", "depth 1", "depth 2", "width 1", "everything"]
    assert [stage.subnets for stage in stages] == [1, 1, 2, 2, 4, 4]
    assert [stage.learning_rate for stage in stages] == [1.0, 0.37, 0.031, 0.092, 0.031, 0.092]
    assert [stage.share for stage in stages][:5] == pytest.approx([x / 1205 for x in (180, 125, 50, 250, 100)])
    assert stages[1].allowed["stage2.kernel"] == (7, 5, 3)
    assert stages[1].allowed["stage2.depth"] == (3,)
    assert stages[2].allowed["stage2.depth"] == (3, 2)
    assert stages[3].allowed["stage2.depth"] == (3, 2, 1)
    assert [stage.sort_channels for stage in stages] == [False, False, False, False, True, False]
    names = [item.stage.name for item in play(policy_of(Shrinking(policy="once_for_all"), resnet), tick=0.001)]
    assert names == ["largest", "depth 1", "depth 2", "width 1", "everything"]


def test_the_other_baselines(resnet):
    (sandwich,) = play(policy_of(Shrinking(policy="sandwich", subnets=3), resnet))
    assert (sandwich.stage.subnets, sandwich.stage.sandwich, sandwich.stage.sampling) == (3, True, "uniform")
    (random,) = play(policy_of(Shrinking(policy="random"), resnet))
    assert (random.stage.subnets, random.stage.sandwich) == (1, False)
    alone, rest = play(policy_of(Shrinking(policy="delayed"), resnet))
    assert alone.stage.allowed == resnet.only_largest
    assert alone.spent == pytest.approx(0.5, abs=0.011)
    assert rest.stage.sort_channels


def recorded(ladders: Ladders) -> Schedule:
    return Schedule("adaptive", "cifar_resnet", "resnet", 10**12, tuple(play(policy_of(Shrinking(), ladders))))


def test_a_recorded_schedule_is_followed(resnet, tmp_path):
    schedule = recorded(resnet)
    write_schedule(tmp_path / "schedule.yaml", schedule)
    again = read_schedule(tmp_path / "schedule.yaml")
    assert again == schedule
    # Other accuracies, same stages.
    assert [(item.stage, item.steps, item.ended) for item in play(Recorded(resnet, again), lambda spent: 0.1)] == [
        (item.stage, item.steps, item.ended) for item in schedule.stages
    ]


def test_a_schedule_for_another_space_is_refused(resnet, mobilenet):
    schedule = recorded(resnet)
    with pytest.raises(ConfigError, match="are the choices"):
        Recorded(mobilenet, schedule)
    plain = schedule.as_dict()
    plain["stages"][0]["allowed"]["stem_width"] = [33]
    with pytest.raises(ConfigError, match=r"stem_width: 33 is no value of the space \(allowed: 32, 24, 16, 8\)"):
        Recorded(resnet, Schedule.from_dict(plain))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("a: 1", "is no schedule"),
        ("- 1", "is no schedule"),
        ("format: kdnas schedule 1\npolicy: x", "is damaged"),
        ("format: kdnas schedule 1\nstages: [{name: 1}]", "is damaged"),
        ("format: kdnas schedule 1\nstages: [3]", "is damaged"),
        ("format: kdnas schedule 1\nstages: 3", "is damaged"),
    ],
)
def test_a_damaged_schedule_file_is_refused(tmp_path, text, message):
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_schedule(path)


def test_files_that_are_not_there(resnet, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_schedule(tmp_path / "none.yaml")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_schedule(tmp_path / "none" / "schedule.yaml", recorded(resnet))
