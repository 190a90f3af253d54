"""What a shrinking policy is: its settings, what it knows at a boundary, and what it decides. All rules are pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kdnas.core.shrinking import Check, FinishedStage, Ladders, Probe, Stage, Unlock
from kdnas.training.recipe import Fraction, Section


class ShrinkingSettings(Section):
    """How a supernet's training shrinks. Shares are fractions of the whole budget."""

    policy: Literal["adaptive", "once_for_all", "sandwich", "random", "delayed"] = "adaptive"
    subnets: Annotated[int, Field(ge=2, le=16)] = 4
    """Subnets trained in a step at most, largest and smallest included."""
    race_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.16
    """adaptive: spent on trying the modes of training at most, measuring included."""
    race_steps: Annotated[float, Field(ge=0.0)] = 40.0
    """adaptive: a mode is tried for as much work as so many steps of `subnets` subnets are, at least. Shorter races
    have chosen by luck."""
    growing_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """adaptive: subnets that grow from the smallest on may be as large as any after this share of a stage."""
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
    sampling: Literal["uniform", "front"] = "uniform"
    """How random subnets are drawn: every choice uniformly, or evenly over their MACs and some of them near the front.
    once_for_all and random draw uniformly."""
    front_share: Fraction = 0.5
    """front: the share of random subnets that are picked near the front."""


@dataclass(frozen=True)
class Situation:
    """What a policy knows at a boundary. `probes` are measured where the policy asks for it."""

    history: tuple[FinishedStage, ...]
    spent: float
    teacher: float
    """The teacher's validation accuracy."""
    probes: tuple[Probe, ...] = ()
    panel_share: float = 0.0
    """What scoring the panel once spends of the budget."""
    step_share: float = 0.0
    """What a step of `subnets` together, largest and smallest included, spends of it."""
    largest_share: float = 0.0
    """What a step of the largest subnet alone spends of it: no subnet of a step spends more."""


class Policy(ABC):
    """Decides the stages of one training, from what was recorded and measured alone."""

    name: str

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
