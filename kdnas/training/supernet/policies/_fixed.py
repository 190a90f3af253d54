"""Shrinking policies: which stage of a supernet training comes next, and when one ends. All rules are pure.

- `adaptive`: stages are not written down beforehand; see `kdnas.training.supernet.policies.adaptive`.
- `once_for_all`: the fixed phases of Cai et al. (ICLR 2020): kernel size, depth, then width and all the rest.
- `sandwich`: everything from the start; largest, smallest and random subnets in every step (Yu and Huang, ICCV 2019).
- `random`: everything from the start, one uniformly random subnet a step (Shipard et al., CVPR workshops 2022).
- `delayed`: the largest subnet alone for half of the budget, then as `sandwich` (as DepS does, ECCV 2024).
- `Recorded` follows a schedule that was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdnas.core.shrinking import Check, FinishedStage, Ladders, ShrinkingRecord, Stage, Unlock
from kdnas.errors import ConfigError, Problem
from kdnas.training.supernet.policies import Policy as Policy
from kdnas.training.supernet.policies import ShrinkingSettings as ShrinkingSettings
from kdnas.training.supernet.policies import Situation as Situation
from kdnas.training.supernet.policies.adaptive import Adaptive

_WIDTHS = ("width", "bottleneck")


def policy_of(settings: ShrinkingSettings, ladders: Ladders) -> Policy:
    """Return the policy that `settings` ask for."""
    if settings.policy == "adaptive":
        return Adaptive(ladders, settings)
    return Fixed(settings.policy, ladders, _fixed_stages(settings, ladders))


class Fixed(Policy):
    """A list of stages written down beforehand; the last one takes what is left of the budget."""

    def __init__(self, name: str, ladders: Ladders, stages: Sequence[Stage]):
        super().__init__(ladders)
        self.name = name
        self._stages = tuple(stages)

    def sorts_channels(self, history: Sequence[FinishedStage]) -> bool:
        """Return what is written down."""
        return len(history) < len(self._stages) and self._stages[len(history)].sort_channels

    def next_stage(self, situation: Situation) -> Stage | None:
        """Return what is written down."""
        done = len(situation.history)
        if done >= len(self._stages):
            return None
        stage = self._stages[done]
        return replace(stage, share=1.0 - situation.spent) if done == len(self._stages) - 1 else stage


class Recorded(Policy):
    """Follows a recorded schedule: the same stages, each for as many steps as it took.

    What was measured is measured again, and spent, but decides nothing. Raises ConfigError where the schedule is for
    another space.
    """

    def __init__(self, ladders: Ladders, schedule: ShrinkingRecord):
        super().__init__(ladders)
        self.name = schedule.policy
        self._finished = schedule.stages
        problems = [problem for finished in schedule.stages for problem in _misfits(finished.stage, ladders)]
        if problems:
            raise ConfigError(problems)

    def sorts_channels(self, history: Sequence[FinishedStage]) -> bool:
        """Return what is recorded."""
        return len(history) < len(self._finished) and self._finished[len(history)].stage.sort_channels

    def to_probe(self, history: Sequence[FinishedStage]) -> tuple[Unlock, ...]:
        """Return what was measured."""
        probes = self._finished[len(history)].stage.probes if len(history) < len(self._finished) else ()
        return tuple(Unlock(probe.dimension, probe.adds) for probe in probes)

    def next_stage(self, situation: Situation) -> Stage | None:
        """Return what is recorded."""
        done = len(situation.history)
        return self._finished[done].stage if done < len(self._finished) else None

    def verdict(self, stage: Stage, steps: int, spent: float, checks: Sequence[Check], teacher: float) -> str | None:
        """Return the recorded reason after the recorded number of steps."""
        recorded = next(item for item in self._finished if item.stage == stage)
        return recorded.ended if steps >= recorded.steps else None


def _misfits(stage: Stage, ladders: Ladders) -> list[Problem]:
    """Return what in a recorded stage is not of the space that `ladders` are of."""
    where = f"stage {stage.name}: allowed"
    if stage.allowed.keys() != ladders.values.keys():
        return [Problem(where, f"are the choices {', '.join(stage.allowed)}", ", ".join(ladders.values))]
    return [
        Problem(f"{where}.{name}", f"{value!r} is no value of the space", ", ".join(map(str, ladders.values[name])))
        for name, values in stage.allowed.items()
        for value in values
        if value not in ladders.values[name]
    ]


def _fixed_stages(settings: ShrinkingSettings, ladders: Ladders) -> list[Stage]:
    everything, largest = ladders.values, ladders.only_largest
    if settings.policy == "random":
        return [Stage("everything", everything, 1.0, reason="written down")]
    sandwich = Stage("everything", everything, 1.0, subnets=settings.subnets, sandwich=True, sampling=settings.sampling)
    sandwich = replace(sandwich, reason="written down")
    if settings.policy == "sandwich":
        return [sandwich]
    alone = Stage("largest", largest, 0.5, reason="written down")
    if settings.policy == "delayed":
        return [alone, replace(sandwich, sort_channels=True)]
    return _once_for_all(ladders)


def _once_for_all(ladders: Ladders) -> list[Stage]:
    """Return the phases whose dimensions the space has.

    Epochs (180, 125, 25, 125, 25, 125) times subnets a step are the shares; the learning rates are those of the
    authors' script over that of the largest net.
    """
    phases: list[tuple[str, tuple[str, ...] | None, int | None, int, int, float]] = [
        ("largest", (), 0, 180 * 1, 1, 1.0),
        ("kernel size", ("kernel size",), None, 125 * 1, 1, 0.37),
        ("depth 1", ("depth",), 1, 25 * 2, 2, 0.031),
        ("depth 2", ("depth",), None, 125 * 2, 2, 0.092),
        ("width 1", _WIDTHS, 1, 25 * 4, 4, 0.031),
        ("everything", None, None, 125 * 4, 4, 0.092),
    ]
    stages: list[Stage] = []
    allowed, sorted_before = ladders.only_largest, False
    for name, dimensions, rungs, weight, subnets, rate in phases:
        before, allowed = allowed, ladders.descend(allowed, dimensions, rungs)
        if stages and allowed == before:
            continue
        sorts = not sorted_before and (dimensions is None or dimensions == _WIDTHS)
        sorted_before |= sorts
        stage = Stage(name, allowed, float(weight), rate, "stage", subnets, sort_channels=sorts, reason="written down")
        stages.append(stage)
    total = sum(stage.share for stage in stages)
    return [replace(stage, share=stage.share / total) for stage in stages]
