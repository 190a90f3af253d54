"""The adaptive shrinking policy: stages are not written down beforehand but follow from what the training measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from kdnas.core.shrinking import (
    Check,
    FinishedStage,
    Ladders,
    Probe,
    Stage,
    Unlock,
    cheapest,
    gains,
    stalled,
    teacher_gap,
)
from kdnas.training.recipe import Fraction
from kdnas.training.supernet.policies import POLICIES, Policy, Share, ShrinkingSettings, Situation

_MEASURING_IN_RACE = 0.25
"""The share of a race that may be measuring."""
_WORTH = 5.0
"""A stage spends at least so many times what the measuring before it did."""


@POLICIES.register
class Adaptive(Policy):
    """Tries modes of training in a short race on the one set of weights, and goes on with the best.

    The modes, those trusted most first: everything is allowed from the start, and random subnets learn, small ones
    first, or of any size, or several in turn, or together; or the largest learns alone and the others are unlocked
    later. After a start in the first mode, each is tried for a stage, then each again in the opposite order, which
    cancels that progress slows down. The best lowers the panel's loss most per MAC. None of this is wasted: all stages
    train the same weights. As many modes race as the budget affords: a stage must be worth `race_steps` steps, and a
    quarter of the race may be measuring. In all, the race spends `race_share` at most. On a budget too small for two
    modes, the first takes it all.

    If unlocking later wins, the cheapest is unlocked first, as measured: at each boundary the next unlock of every
    elastic dimension is tried on the largest subnet, for the validation score lost per share of MACs saved. Such a
    stage ends when neither its smallest nor its largest subnet has risen by more than `improvement` in `patience`
    checks, or when its share of the budget is spent: twice an equal part of what is left before the reserve of the last
    stage. Where an equal part is below `shortest_share`, or below five times what the measuring at the boundary spent,
    the rest is unlocked at once. The largest alone is also left once it can teach (`teaching_gap`).

    The remaining teacher gap (1 - mean score of the subnets over the teacher's) sets the stages after the race: from
    `wide_gap` on, full learning rate, full weight of the distillation losses and, where subnets learn together,
    `subnets` a step; with the gap closed, half the rate, half the weight and three a step; in between, linearly.

    Args:
        race_share: Share of the budget spent on trying the modes of training at most, measuring included.
        race_steps: A mode is tried for as much work as so many steps of `subnets` subnets are, at least. Shorter races
            have chosen by luck.
        growing_share: Subnets that grow from the smallest on may be as large as any after this share of a stage.
        unlock_by: Unlock a dimension's next values in all stages of the network together, or in one at a time.
        first_share: Upper bound of the stage of the largest subnet alone, a share of the budget.
        teaching_gap: That stage ends once the largest subnet is so close to the teacher: it can teach.
        final_share: Share of the budget reserved for the last stage, in which everything is allowed.
        shortest_share: Lower bound of every stage, a share of the budget.
        patience: So many checks without an improvement end a stage.
        improvement: What counts as one, in score.
        wide_gap: The teacher gap from which on the settings of a stage are those far from the teacher.
    """

    def __init__(
        self,
        ladders: Ladders,
        settings: ShrinkingSettings,
        *,
        race_share: Share = 0.16,
        race_steps: Annotated[float, Field(ge=0.0)] = 40.0,
        growing_share: Share = 1.0,
        unlock_by: Literal["dimension", "choice"] = "dimension",
        first_share: Fraction = 0.2,
        teaching_gap: Fraction = 0.1,
        final_share: Fraction = 0.7,
        shortest_share: Fraction = 0.02,
        patience: Annotated[int, Field(ge=1, le=100)] = 2,
        improvement: Fraction = 0.005,
        wide_gap: Share = 0.2,
    ):
        super().__init__(ladders, settings)
        self._race_share, self._race_steps = race_share, race_steps
        self._unlock_by: Literal["dimension", "choice"] = unlock_by
        self._first_share, self._final_share, self._shortest_share = first_share, final_share, shortest_share
        self._teaching_gap, self._wide_gap = teaching_gap, wide_gap
        self._patience, self._improvement = patience, improvement
        self._modes = _modes(ladders, settings, growing_share)

    def unlocks_to_probe(self, history: Sequence[FinishedStage]) -> tuple[Unlock, ...]:
        """Return the next unlock of every dimension, where unlocking later won the race."""
        if not history or not history[-1].stage.watched:
            return ()
        return self.ladders.unlocks(history[-1].stage.allowed, self._unlock_by)

    def next_stage(self, situation: Situation) -> Stage | None:
        """Return the next of the race, then the winner: all of it, or the largest alone and the cheapest unlocks."""
        done, race = len(situation.history), self._race(situation)
        if done < len(race):
            return self._next_of(race[done:], situation)
        if not race:
            return None if done else replace(self._modes[0], reason="the budget is too small to try modes of training")
        if done == len(race):
            return self._winner(situation)
        return self._unlocked(situation) if situation.history[-1].stage.watched else None

    def _race(self, situation: Situation) -> tuple[Stage, ...]:
        """Return the stages of the largest race that the budget affords, () where that is none."""
        share = self._race_share
        modes = 0 if self.ladders.only_largest == self.ladders.values else len(self._modes)
        for count in range(modes, 1, -1):
            race = _race(self._modes[:count])
            measuring = _measuring(race, situation)
            training = share - measuring
            steps = training / len(race) / situation.step_share if situation.step_share > 0 else math.inf
            enough = steps >= self._race_steps and _single_steps(race, situation) <= training
            if enough and measuring <= _MEASURING_IN_RACE * share:
                return race
        return ()

    def _next_of(self, race: Sequence[Stage], situation: Situation) -> Stage:
        """Return the first of the stages of a `race` that are left, with a share that keeps the race within its own.

        A stage ends with the step that reaches its share. So a step of every stage and all measuring are set aside, and
        the stages share what is left then; what one of them leaves over goes to those that follow.
        """
        left = self._race_share - situation.spent - _measuring(race, situation)
        return replace(race[0], share=(left - _single_steps(race, situation)) / len(race))

    def _best(self, history: Sequence[FinishedStage], *, everything: bool) -> tuple[Stage, dict[str, float]]:
        """Return the mode that gained most, perhaps of those alone that allow everything, and what each gained."""
        found = gains(history)
        modes = [mode for mode in self._modes if mode.mode in found]
        among = [mode for mode in modes if not everything or mode.allowed == self.ladders.values]
        return max(among, key=lambda mode: found[mode.mode]), found

    def _winner(self, situation: Situation) -> Stage:
        mode, found = self._best(situation.history, everything=False)
        panel = situation.history[-1].panel
        assert panel is not None
        gap = 1.0 - min(1.0, panel.score / situation.teacher) if situation.teacher > 0 else 0.0
        reason = f"{mode.mode} lowers the loss most per MAC"
        alone = mode.allowed == self.ladders.only_largest
        share = self._first_share if alone else 1.0 - situation.spent
        stage = replace(mode, name=mode.name, share=share, watched=alone, reason=reason, gap=gap, gains=found)
        return self._follow(stage, gap)

    def _unlocked(self, situation: Situation) -> Stage | None:
        history = situation.history
        allowed = history[-1].stage.allowed
        left = self.ladders.unlocks_left(allowed, self._unlock_by)
        if left == 0 or not situation.probes:
            return None
        chosen = cheapest(situation.probes)
        unlock = next(item for item in self.unlocks_to_probe(history) if item.dimension == chosen.dimension)
        before_last = 1.0 - self._final_share - situation.spent
        measuring = situation.spent - sum(finished.spent for finished in history)
        shortest = max(self._shortest_share, _WORTH * measuring)
        everything, _ = self._best(history, everything=True)
        if left > 1 and before_last / (left - 1) >= shortest:
            share = min(2.0 * before_last / (left - 1), before_last)
            name = f"{sum(item.stage.watched for item in history)} {unlock.dimension}"
            gap = self._gap(situation, (chosen,))
            reason = f"{unlock.dimension} loses least per MAC saved"
            stage = replace(everything, name=name, allowed=unlock.apply(allowed), share=share, watched=True)
        else:
            reason = "it is the last unlock" if left == 1 else f"the budget leaves no stage for each of {left} unlocks"
            gap = self._gap(situation, situation.probes)
            stage = replace(everything, share=1.0 - situation.spent)
        return self._follow(replace(stage, reason=reason, gap=gap, probes=situation.probes), gap)

    def ends_because(
        self, stage: Stage, steps: int, spent: float, checks: Sequence[Check], teacher: float
    ) -> str | None:
        """Return the reason once the share is spent, the largest alone can teach, or nothing improves any more."""
        if spent >= stage.share:
            return "its share of the budget is spent"
        if not stage.watched or spent < self._shortest_share:
            return None
        if checks and stage.allowed == self.ladders.only_largest:
            gap = teacher_gap(teacher, checks[-1].largest, checks[-1].largest)
            if gap <= self._teaching_gap:
                return f"the largest subnet is within {self._teaching_gap:g} of the teacher"
        if stalled(checks, patience=self._patience, improvement=self._improvement):
            return f"neither subnet rose by more than {self._improvement:g} in {self._patience} checks"
        return None

    def _gap(self, situation: Situation, unlocked: Sequence[Probe]) -> float:
        last = situation.history[-1].checks[-1]
        return teacher_gap(situation.teacher, last.largest, min(last.smallest, *(item.score for item in unlocked)))

    def _follow(self, stage: Stage, gap: float) -> Stage:
        """Return `stage` with what follows the teacher gap."""
        closed = 1.0 - min(1.0, gap / self._wide_gap)
        half = round(1.0 - 0.5 * closed, 4)
        fewer = max(3, stage.subnets - round((stage.subnets - 3) * closed))
        together = stage.sandwich and not stage.in_turn
        return replace(stage, learning_rate=half, kd_weight=half, subnets=fewer if together else stage.subnets)


def _modes(ladders: Ladders, settings: ShrinkingSettings, growing_share: float) -> tuple[Stage, ...]:
    """Return the modes that the adaptive policy chooses from, the one that it trusts most first.

    Those come first that make more updates of the same work: the less a budget affords, the more this decides.
    """
    at_random = Stage("everything", ladders.values, 1.0, sampling=settings.sampling, mode="at random")
    sandwich = replace(at_random, sandwich=True)
    return (
        replace(at_random, growth=growing_share, mode="growing"),
        at_random,
        replace(sandwich, subnets=2 * settings.subnets, in_turn=True, mode="in turn"),
        replace(sandwich, subnets=settings.subnets, mode="together"),
        Stage("largest", ladders.only_largest, 1.0, mode="largest first"),
    )


def _race(modes: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages of a race, their shares left open: a start, then every mode twice.

    Where a mode does not allow everything, a stage that does follows before it is judged: what it is worth to small
    subnets shows only once they learn, too.
    """
    stages = [replace(modes[0], judged=True, mode="")]
    for mode in (*modes, *reversed(modes)):
        if mode.allowed == modes[0].allowed:
            stages.append(replace(mode, judged=True))
        else:
            stages += [mode, replace(modes[0], mode=mode.mode, judged=True)]
    return tuple(
        replace(stage, name=f"race {place}: {stage.mode or 'start'}", reason="every mode is tried twice")
        for place, stage in enumerate(stages)
    )


def _measuring(race: Sequence[Stage], situation: Situation) -> float:
    """Return what judging the stages of `race` spends of the budget."""
    return situation.panel_share * sum(stage.judged for stage in race)


def _single_steps(race: Sequence[Stage], situation: Situation) -> float:
    """Return what one step of every stage of `race` spends of the budget at most."""
    return situation.largest_share * sum(1 if stage.in_turn else stage.subnets for stage in race)
