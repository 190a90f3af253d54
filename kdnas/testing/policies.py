"""What every shrinking policy keeps, played through without a network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kdnas.core.arch import Scalar
from kdnas.core.shrinking import Check, FinishedStage, Ladders, Panel, Probe, ShrinkingRecord, Stage
from kdnas.core.space import Choice, SearchSpace
from kdnas.testing._member import MemberConformance
from kdnas.training.supernet.policies import POLICIES, Policy, ShrinkingSettings, Situation
from kdnas.training.supernet.policies._recorded import Recorded

COSTS = {"depth": 0.05, "width": 0.1, "bottleneck": 0.3, "skip": 0.2, "kernel size": 0.01, "squeeze_excite": 0.02}
_SPACE = SearchSpace(
    "small",
    "resnet",
    (
        Choice("stem_width", (4, 8, 16)),
        Choice("stage1.depth", (1, 2, 3)),
        Choice("stage1.width", (8, 16, 32)),
        Choice("stage1.skip", ("identity", "none")),
    ),
)
_CASES: Mapping[str, Mapping[str, Any]] = {"free": {}, "measured": {"panel": 0.001, "step_share": 0.0003}}


def play(
    policy: Policy | Callable[[], Policy],
    accuracy: Callable[[float], float] = lambda spent: spent,
    tick: float = 0.005,
    measuring: float = 0.0,
    rates: Mapping[str, float] | None = None,
    panel: float = 0.0,
    step_share: float = 0.0,
    largest_share: float = 0.0,
    cost: Callable[[Stage], float] | None = None,
) -> list[FinishedStage]:
    """Let a policy decide a whole training in which steps spend `tick` and are checks, and probes `measuring`.

    The panel's loss falls at the rate of a stage's mode (1 where `rates` has none), slower and slower. `panel` is what
    scoring it spends, `step_share` a step, `largest_share` one of the largest alone. `cost` gives another cost of steps
    than `tick`. Something that makes a policy is asked for one at every boundary, as after an interruption.
    """
    history: list[FinishedStage] = []
    spent, step, loss = 0.0, 0, 2.3
    while True:
        now = policy if isinstance(policy, Policy) else policy()
        probes = tuple(
            Probe(unlock.dimension, unlock.adds, 0.5, COSTS.get(unlock.dimension, 0.1) * 0.1, 0.1)
            for unlock in now.unlocks_to_probe(history)
        )
        before = spent
        spent += measuring if probes else 0.0
        stage = now.next_stage(Situation(tuple(history), spent, 1.0, probes, panel, step_share, largest_share))
        if stage is None or spent >= 1.0:
            return history
        first, checks, ended = step, [], None
        while ended is None and spent < 1.0:
            step, spent = step + 1, round(spent + tick, 6) if cost is None else spent + cost(stage)
            loss *= math.exp(-(rates or {}).get(stage.mode, 1.0) * (1.0 - spent) * tick)
            if stage.watched:
                checks.append(Check(step, spent, accuracy(spent), accuracy(spent) / 2))
            ended = now.ends_because(stage, step - first, spent - before, checks, 1.0)
        judged = Panel(accuracy(spent), accuracy(spent), accuracy(spent), loss) if stage.judged else None
        spent += panel if stage.judged else 0.0
        parts = step - first, spent - before, ended or "budget", tuple(checks), judged
        history.append(FinishedStage(stage, first, *parts))


def _macs(assignment: Mapping[str, Scalar]) -> int:
    depth, width, stem = (int(assignment[name]) for name in ("stage1.depth", "stage1.width", "stem_width"))
    return int(10 * stem + depth * (width * stem + width * width)) + 5 * (assignment["stage1.skip"] == "identity")


class PolicyConformance(MemberConformance):
    """The suite of shrinking policies."""

    registry = POLICIES

    @property
    def ladders(self) -> Ladders:
        """The rungs of every choice of the space that is shrunk."""
        return Ladders.of(_SPACE, _macs)

    def policy(self) -> Policy:
        """Return the policy by its own settings."""
        settings = ShrinkingSettings.model_construct(policy=str(self._member), **self.options)
        if isinstance(self._member, str):
            settings = ShrinkingSettings(policy=self._member, **self.options)
        policy: Policy = self.build(self.ladders, settings)
        return policy

    @pytest.mark.parametrize("costs", _CASES)
    def test_it_spends_the_budget_and_allows_everything_at_last(self, costs: str) -> None:
        ladders, case = self.ladders, _CASES[costs]
        history = play(self.policy(), tick=0.001, **case)
        assert 1.0 <= sum(item.spent for item in history) < 1.0 + 0.0011 + case.get("panel", 0.0)
        assert history[-1].stage.allowed == ladders.values
        for item in history:
            assert item.steps >= 1
            assert item.stage.reason
            assert 0.0 < item.stage.share <= 1.0
            assert item.stage.allowed.keys() == ladders.values.keys()
            for choice, values in item.stage.allowed.items():
                assert values == ladders.values[choice][: len(values)]  # the first rungs, the largest among them
                assert values

    @pytest.mark.parametrize("costs", _CASES)
    def test_it_goes_on_after_an_interruption_as_it_would_have(self, costs: str) -> None:
        case = _CASES[costs]
        assert play(self.policy, tick=0.001, **case) == play(self.policy(), tick=0.001, **case)

    @pytest.mark.parametrize("costs", _CASES)
    def test_what_was_recorded_is_followed_whatever_is_measured(self, costs: str) -> None:
        case, policy = _CASES[costs], self.policy()
        stages = tuple(play(policy, tick=0.001, **case))
        record = ShrinkingRecord(policy.name, "space", "family", 10**12, stages)
        plain = ShrinkingRecord.from_dict(json.loads(json.dumps(record.as_dict())))
        again = Recorded(self.ladders, policy.settings, plain)
        assert again.name == policy.name
        followed = play(again, lambda spent: 0.1, tick=0.001, rates={"together": 9.0}, **case)
        assert [(item.stage, item.steps) for item in followed] == [(item.stage, item.steps) for item in stages]
