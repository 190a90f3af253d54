"""Shrinking policies: which stage of a supernet training comes next, and when one ends. All rules are pure.

- `adaptive`: stages are not written down beforehand; see `Adaptive`.
- `once_for_all`: the fixed phases of Cai et al. (ICLR 2020): kernel size, depth, then width and all the rest.
- `sandwich`: everything from the start; largest, smallest and random subnets in every step (Yu and Huang, ICCV 2019).
- `random`: everything from the start, one uniformly random subnet a step (Shipard et al., CVPR workshops 2022).
- `delayed`: the largest subnet alone for half of the budget, then as `sandwich` (as DepS does, ECCV 2024).
- `Recorded` follows a schedule that was recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from kdnas.core.schedule import (
    Check,
    Domains,
    FinishedStage,
    Ladders,
    Probe,
    Schedule,
    Stage,
    Unlock,
    cheapest,
    dimension_of,
    stalled,
    teacher_gap,
)
from kdnas.errors import ConfigError, Problem
from kdnas.training.recipe import Fraction, Section

_WIDTHS = ("width", "bottleneck")
_WORTH = 5.0
"""A stage spends at least so many times what the measuring before it did."""


class Shrinking(Section):
    """How a supernet's training shrinks. Shares are fractions of the whole budget."""

    policy: Literal["adaptive", "once_for_all", "sandwich", "random", "delayed"] = "adaptive"
    subnets: Annotated[int, Field(ge=2, le=16)] = 4
    """Subnets trained in a step at most, largest and smallest included."""
    unlock_by: Literal["dimension", "choice"] = "dimension"
    """adaptive: unlock a dimension's next values in all stages of the network together, or in one at a time."""
    first_share: Fraction = 0.2
    """adaptive: upper bound of the stage of the largest subnet alone."""
    teaching_gap: Fraction = 0.1
    """adaptive: that stage ends once the largest subnet is so close to the teacher: it can teach."""
    final_share: Fraction = 0.7
    """adaptive: reserved for the last stage, in which everything is allowed."""
    shortest_share: Fraction = 0.02
    """adaptive: lower bound of every stage."""
    check_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.02
    """How often the largest and the smallest subnet are scored (adaptive) and the checkpoint is written."""
    measuring_share: Fraction = 0.1
    """adaptive: a check is left out while more than this share of what was spent went into measuring."""
    patience: Annotated[int, Field(ge=1, le=100)] = 2
    """adaptive: so many checks without an improvement end a stage."""
    improvement: Fraction = 0.005
    """adaptive: what counts as one, in accuracy."""
    wide_gap: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """adaptive: the teacher gap from which on the settings of a stage are those far from the teacher."""
    front_share: Fraction = 0.5
    """adaptive: the share of random subnets that are picked near the front."""


@dataclass(frozen=True)
class Situation:
    """What a policy knows at a boundary. `probes` are measured where the policy asks for it."""

    history: tuple[FinishedStage, ...]
    spent: float
    teacher: float
    """The teacher's validation accuracy."""
    probes: tuple[Probe, ...] = ()


class Policy(ABC):
    """Decides the stages of one training, from what was recorded and measured alone."""

    name: str
    checks: bool = False
    """Whether largest and smallest subnet are scored at every check. The MACs of that are spent from the budget."""

    def __init__(self, ladders: Ladders):
        self.ladders = ladders

    def sorts_channels(self, history: Sequence[FinishedStage]) -> bool:
        """Return whether channels are to be sorted by importance before the next stage."""
        return False

    def to_probe(self, history: Sequence[FinishedStage]) -> tuple[Unlock, ...]:
        """Return the unlocks whose cost is to be measured before the next stage."""
        return ()

    @abstractmethod
    def next_stage(self, situation: Situation) -> Stage | None:
        """Return the next stage, None where the training is over."""

    def verdict(self, stage: Stage, steps: int, spent: float, checks: Sequence[Check], teacher: float) -> str | None:
        """Return why `stage` ends after `steps` steps that spent the share `spent`, None where it goes on.

        `teacher` is the teacher's validation accuracy.
        """
        return "its share of the budget is spent" if spent >= stage.share else None


def policy_of(settings: Shrinking, ladders: Ladders) -> Policy:
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

    def __init__(self, ladders: Ladders, schedule: Schedule):
        super().__init__(ladders)
        self.name = schedule.policy
        self.checks = any(finished.checks for finished in schedule.stages)
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


class Adaptive(Policy):
    """Begins with the largest subnet alone and unlocks what costs least, as measured, until everything is allowed.

    At each boundary the next unlock of every elastic dimension is tried on the largest subnet: validation accuracy lost
    per share of MACs saved. The cheapest is unlocked. A stage ends when neither its smallest nor its largest subnet has
    risen by more than `improvement` in `patience` checks, or when its share of the budget is spent: twice an equal part
    of what is left before the reserve of the last stage. Where an equal part is below `shortest_share`, or below five
    times what the measuring at the boundary spent, the rest is unlocked at once. The first stage also ends once the
    largest can teach (`teaching_gap`).

    The remaining teacher gap (1 - mean accuracy of largest and smallest over the teacher's, the subnets to be unlocked
    included) sets the stage: from `wide_gap` on, full learning rate, `subnets` a step and full weight of the
    distillation losses; with the gap closed, 0.3 of the rate, three subnets a step and half the weight; in between,
    linearly. A wide gap is that of small subnets, of which a step can afford many.
    """

    name = "adaptive"
    checks = True

    def __init__(self, ladders: Ladders, settings: Shrinking):
        super().__init__(ladders)
        self._settings = settings

    def sorts_channels(self, history: Sequence[FinishedStage]) -> bool:
        """Return True as long as no width has been unlocked: sorting later would undo what narrow subnets learned."""
        return bool(history) and all(
            len(values) == 1 for name, values in history[-1].stage.allowed.items() if dimension_of(name) in _WIDTHS
        )

    def to_probe(self, history: Sequence[FinishedStage]) -> tuple[Unlock, ...]:
        """Return the next unlock of every dimension, after the first stage."""
        return self.ladders.unlocks(history[-1].stage.allowed, self._settings.unlock_by) if history else ()

    def next_stage(self, situation: Situation) -> Stage | None:
        """Return the largest alone, then the cheapest unlock, at last everything."""
        settings, history = self._settings, situation.history
        if not history:
            only = self.ladders.only_largest
            share = settings.first_share if only != self.ladders.values else 1.0
            return self._stage("largest", only, share, situation, None, "training starts with the largest")
        allowed = history[-1].stage.allowed
        left = self.ladders.unlocks_left(allowed, settings.unlock_by)
        if left == 0:
            return None
        chosen = cheapest(situation.probes)
        unlock = next(item for item in self.to_probe(history) if item.dimension == chosen.dimension)
        before_last = 1.0 - settings.final_share - situation.spent
        reason = f"{unlock.dimension} loses least accuracy per MAC saved"
        measuring = situation.spent - sum(finished.spent for finished in history)
        shortest = max(settings.shortest_share, _WORTH * measuring)
        if left > 1 and before_last / (left - 1) >= shortest:
            share = 2.0 * before_last / (left - 1)
            name, gap = f"{len(history)} {unlock.dimension}", self._gap(situation, (chosen,))
            return self._stage(name, unlock.apply(allowed), min(share, before_last), situation, gap, reason)
        if left > 1:
            reason = f"the budget leaves no stage for each of {left} unlocks"
        gap = self._gap(situation, situation.probes)
        return self._stage("everything", self.ladders.values, 1.0 - situation.spent, situation, gap, reason)

    def verdict(self, stage: Stage, steps: int, spent: float, checks: Sequence[Check], teacher: float) -> str | None:
        """Return the reason once the share is spent, the largest alone can teach, or nothing improves any more."""
        if spent >= stage.share:
            return "its share of the budget is spent"
        settings, last = self._settings, self.ladders.unlocks_left(stage.allowed, "dimension") == 0
        if last or spent < settings.shortest_share:
            return None
        if checks and stage.allowed == self.ladders.only_largest:
            gap = teacher_gap(teacher, checks[-1].largest, checks[-1].largest)
            if gap <= settings.teaching_gap:
                return f"the largest subnet is within {settings.teaching_gap:g} of the teacher"
        if stalled(checks, patience=settings.patience, improvement=settings.improvement):
            return f"neither subnet rose by more than {settings.improvement:g} in {settings.patience} checks"
        return None

    def _gap(self, situation: Situation, unlocked: Sequence[Probe]) -> float:
        last = situation.history[-1].checks[-1]
        return teacher_gap(situation.teacher, last.largest, min(last.smallest, *(item.accuracy for item in unlocked)))

    def _stage(
        self, name: str, allowed: Domains, share: float, situation: Situation, gap: float | None, reason: str
    ) -> Stage:
        closed = 1.0 - min(1.0, (1.0 if gap is None else gap) / self._settings.wide_gap)
        alone, few = allowed == self.ladders.only_largest, min(3, self._settings.subnets)
        return Stage(
            name=name,
            allowed=allowed,
            share=share,
            learning_rate=round(1.0 - 0.7 * closed, 4),
            subnets=1 if alone else few + round((self._settings.subnets - few) * (1.0 - closed)),
            sandwich=not alone,
            sampling="front",
            kd_weight=round(1.0 - 0.5 * closed, 4),
            sort_channels=self.sorts_channels(situation.history),
            reason=reason,
            gap=gap,
            probes=situation.probes,
        )


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


def _fixed_stages(settings: Shrinking, ladders: Ladders) -> list[Stage]:
    everything, largest = ladders.values, ladders.only_largest
    sandwich = Stage("everything", everything, 1.0, subnets=settings.subnets, sandwich=True, reason="written down")
    if settings.policy == "sandwich":
        return [sandwich]
    if settings.policy == "random":
        return [replace(sandwich, subnets=1, sandwich=False)]
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
