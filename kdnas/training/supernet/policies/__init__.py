"""Shrinking policies: which stage of a supernet's training comes next, and when one ends. All rules are pure.

A policy is one file here, and one class. It decides from what was recorded and measured alone, so that a training that
was interrupted goes on as it would have, and a recorded one can be followed to the letter (`_recorded`).
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field
from pydantic_core import InitErrorDetails, PydanticCustomError

from kdnas.core.shrinking import Check, FinishedStage, Ladders, Probe, Stage, Unlock
from kdnas.errors import ConfigError
from kdnas.registry import Registry, Section
from kdnas.training.recipe import Fraction

Share = Annotated[float, Field(gt=0.0, le=1.0)]
"""Of the whole budget."""


@dataclass(frozen=True)
class Situation:
    """What a policy is given at a boundary. Shares are fractions of the whole budget.

    `probes` are measured where the policy asks for it; `teacher` is the teacher's validation score, as a
    share like all scores here (`kdnas.core.shrinking`). What scoring the
    panel once would spend is `panel_share`, a step of `subnets` together, largest and smallest included, `step_share`,
    a step of the largest subnet alone `largest_share`: no subnet of a step spends more.
    """

    history: tuple[FinishedStage, ...]
    spent: float
    teacher: float
    probes: tuple[Probe, ...] = ()
    panel_share: float = 0.0
    step_share: float = 0.0
    largest_share: float = 0.0


class Policy(ABC):
    """Decides the stages of one training.

    A member's constructor is `__init__(self, ladders: Ladders, settings: ShrinkingSettings, *, options)`. The options
    of a policy stand in a study next to the settings that all policies share.
    """

    def __init__(self, ladders: Ladders, settings: ShrinkingSettings):
        self.ladders = ladders
        self.settings = settings

    @property
    def name(self) -> str:
        """What the record of the training calls it."""
        return self.settings.policy

    def sorts_channels(self, history: Sequence[FinishedStage]) -> bool:
        """Return whether channels are to be sorted by importance before the next stage."""
        return False

    def unlocks_to_probe(self, history: Sequence[FinishedStage]) -> tuple[Unlock, ...]:
        """Return the unlocks whose cost is to be measured before the next stage."""
        return ()

    @abstractmethod
    def next_stage(self, situation: Situation) -> Stage | None:
        """Return the next stage, None where the training is over."""

    def ends_because(
        self, stage: Stage, steps: int, spent: float, checks: Sequence[Check], teacher: float
    ) -> str | None:
        """Return why `stage` ends after `steps` steps that spent the share `spent`, None where it goes on.

        `teacher` is the teacher's validation score.
        """
        return "its share of the budget is spent" if spent >= stage.share else None

    @property
    def sandwich(self) -> Stage:
        """The stage in which everything is allowed and learns by the sandwich rule."""
        settings = self.settings
        stage = Stage("everything", self.ladders.values, 1.0, subnets=settings.subnets, sandwich=True)
        return replace(stage, sampling=settings.sampling, reason="written down")


class FixedPolicy(Policy):
    """A list of stages written down beforehand; the last one takes what is left of the budget."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """The stages, in order."""

    def sorts_channels(self, history: Sequence[FinishedStage]) -> bool:
        """Return what is written down."""
        stages = self.stages
        return len(history) < len(stages) and stages[len(history)].sort_channels

    def next_stage(self, situation: Situation) -> Stage | None:
        """Return what is written down."""
        stages, done = self.stages, len(situation.history)
        if done >= len(stages):
            return None
        return replace(stages[done], share=1.0 - situation.spent) if done == len(stages) - 1 else stages[done]


POLICIES: Registry[type[Policy]] = Registry("shrinking policy", __name__, Policy)


class ShrinkingSettings(Section):
    """How a supernet's training shrinks: the policy with its own options, and what all policies share.

    An option that only another policy has is left out, so that a study can change its policy alone.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    policy: str = "adaptive"
    subnets: Annotated[int, Field(ge=2, le=16)] = 4
    """Subnets trained in a step at most, largest and smallest included."""
    check_share: Share = 0.02
    """How often subnets are scored where the policy asks for it, and the checkpoint is written."""
    measuring_share: Fraction = 0.1
    """A check is left out while more than this share of what was spent went into measuring."""
    sampling: Literal["uniform", "front"] = "uniform"
    """How random subnets are drawn: every choice uniformly, or evenly over their MACs and some of them near the front.
    once_for_all and random draw uniformly."""
    front_share: Fraction = 0.5
    """front: the share of random subnets that are picked near the front."""

    @pydantic.field_validator("policy")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            POLICIES.get(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return name

    @pydantic.model_validator(mode="after")
    def _with_own_options(self) -> Self:
        """Put the policy's own options in the place of what was stated, every default resolved."""
        stated, model = self.options, POLICIES.options(self.policy)
        unknown = [name for name in stated if name not in model.model_fields]
        others = (
            {field for name in POLICIES.names() for field in POLICIES.options(name).model_fields} if unknown else ()
        )
        strange = [name for name in unknown if name not in others]
        if strange:
            allowed = sorted({*type(self).model_fields, *model.model_fields})
            raise pydantic.ValidationError.from_exception_data(
                "shrinking", [_unknown_option(name, stated[name], allowed) for name in strange]
            )
        own = model.model_validate({name: value for name, value in stated.items() if name not in unknown})
        object.__setattr__(self, "__pydantic_extra__", own.model_dump())
        return self

    @property
    def options(self) -> Mapping[str, Any]:
        """The policy's own options."""
        return dict(self.model_extra or {})


def open_policy(settings: ShrinkingSettings, ladders: Ladders) -> Policy:
    """Return the policy that `settings` ask for."""
    policy: Policy = POLICIES.build(settings.policy, ladders, settings, **settings.options)
    return policy


def _unknown_option(name: str, value: Any, allowed: Sequence[str]) -> InitErrorDetails:
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    error = PydanticCustomError("unknown_option", f"unknown key{hint} (allowed: {', '.join(allowed)})")
    return InitErrorDetails(type=error, loc=(name,), input=value)
