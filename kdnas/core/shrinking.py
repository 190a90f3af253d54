"""Progressive shrinking: what a supernet unlocked when and why, as plain records, and the pure rules that decide it.

A supernet's training is an ordered list of stages. A stage states which values of each choice may be sampled,
which share of the budget it may spend, and at which settings. Shares and what was spent are fractions of the whole
budget in [0, 1]; learning rates and the weight of the distillation losses are factors of the recipe's. Scores are
numbers in [0, 1] of which more is better, whatever the task's are (`Quantity.as_share`).

The ladder of a choice are its values ordered by the MACs of the largest subnet that has them instead, largest first. A
stage allows the first rungs of each ladder, so the largest subnet is allowed in every stage.

Source of the rule that the cheapest dimension shrinks next, per MAC saved: NetAdapt (Yang et al., ECCV 2018), here for
elastic dimensions of a supernet (Cai et al., "Once-for-all", ICLR 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from kdnas.core.arch import Scalar
from kdnas.core.space import Assignment, SearchSpace

Domains = Mapping[str, tuple[Scalar, ...]]

RESOLUTION = "resolution"
"""The choice of the size that samples are brought to, an image's side or a text's length; no choice of a family."""

_LEAST_LOSS = 1e-6
_DIMENSIONS = {"stem_width": "width", "head_width": "width", "expand": "bottleneck", "kernel": "kernel size"}


def dimension_of(choice: str) -> str:
    """Return the elastic dimension that a choice belongs to: depth, width, bottleneck, kernel size, skip, ..."""
    part = choice.rpartition(".")[2]
    return _DIMENSIONS.get(part, part)


@dataclass(frozen=True)
class Ladders:
    """The ladder of every choice, and for each rung the MACs of the largest subnet that has this value instead."""

    values: Domains
    macs: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, space: SearchSpace, macs: Callable[[Assignment], int]) -> Ladders:
        """Return the ladders of `space`; `macs` prices an assignment.

        The largest subnet is found by raising one choice after the other until none raises the MACs; among equal values
        the first listed is the larger.
        """
        largest = {choice.name: choice.values[0] for choice in space.choices}
        # Depth first: while a stage is left out its other choices cost nothing.
        order = sorted(space.choices, key=lambda choice: dimension_of(choice.name) != "depth")
        before = None
        while largest != before:
            before = dict(largest)
            for choice in order:
                largest[choice.name] = max(
                    (largest[choice.name], *choice.values),
                    key=lambda value: macs({**largest, choice.name: value}),
                )
        values, prices = {}, {}
        for choice in space.choices:
            priced = [(macs({**largest, choice.name: value}), value) for value in choice.values]
            priced.sort(key=lambda pair: (pair[1] != largest[choice.name], -pair[0]))
            values[choice.name] = tuple(value for _, value in priced)
            prices[choice.name] = tuple(price for price, _ in priced)
        return cls(values, prices)

    @property
    def largest(self) -> Assignment:
        """The assignment of the largest subnet."""
        return {name: values[0] for name, values in self.values.items()}

    @property
    def only_largest(self) -> Domains:
        """Domains that allow the largest subnet alone."""
        return {name: values[:1] for name, values in self.values.items()}

    @property
    def panel(self) -> tuple[Assignment, Assignment, Assignment]:
        """The assignments of the smallest subnet, of the one half-way down every ladder, and of the largest."""
        middle = {name: values[len(values) // 2] for name, values in self.values.items()}
        return self.smallest(self.values), middle, self.largest

    def smallest(self, allowed: Domains) -> Assignment:
        """Return the assignment of the smallest subnet in `allowed`; among equal values the first rung."""
        return {
            name: values[min(range(len(values)), key=lambda rung: self.macs[name][rung])]
            for name, values in allowed.items()
        }

    def descend(self, allowed: Domains, dimensions: Sequence[str] | None = None, rungs: int | None = None) -> Domains:
        """Return `allowed` with `rungs` more of the choices of `dimensions` (None: all of either)."""
        return {
            name: self.values[name][: None if rungs is None else len(values) + rungs]
            if dimensions is None or dimension_of(name) in dimensions
            else values
            for name, values in allowed.items()
        }

    def unlocks(self, allowed: Domains, by: Literal["dimension", "choice"]) -> tuple[Unlock, ...]:
        """Return what can be unlocked next: the next rung of every choice, those of one dimension together."""
        adds: dict[str, Assignment] = {}
        for name, values in allowed.items():
            if len(values) < len(self.values[name]):
                group = dimension_of(name) if by == "dimension" else name
                adds.setdefault(group, {})[name] = self.values[name][len(values)]
        return tuple(Unlock(name, values) for name, values in adds.items())

    def unlocks_left(self, allowed: Domains, by: Literal["dimension", "choice"]) -> int:
        """Return how many unlocks there are until every value is allowed."""
        left: dict[str, int] = {}
        for name, values in allowed.items():
            group = dimension_of(name) if by == "dimension" else name
            left[group] = max(left.get(group, 0), len(self.values[name]) - len(values))
        return sum(left.values())


@dataclass(frozen=True)
class Unlock:
    """One step of shrinking: the value that each choice of an elastic dimension gets next."""

    dimension: str
    adds: Assignment

    def apply(self, allowed: Domains) -> Domains:
        """Return `allowed` with the values added."""
        return {name: (*values, self.adds[name]) if name in self.adds else values for name, values in allowed.items()}


@dataclass(frozen=True)
class Probe:
    """What an unlock would cost, measured on the largest subnet with the unlock's values instead of its own.

    `score_lost` is a difference of validation scores, negative where the smaller one is better; `macs_saved` is the
    share of the largest subnet's MACs; `cost` is the score lost per MAC share saved, `inf` where none is saved.
    """

    dimension: str
    adds: Assignment
    score: float
    score_lost: float
    macs_saved: float

    @property
    def cost(self) -> float:
        """Score lost per share of MACs saved, never below 0."""
        return max(self.score_lost, 0.0) / self.macs_saved if self.macs_saved > 0 else math.inf


def cheapest(probes: Sequence[Probe]) -> Probe:
    """Return the probe with the lowest cost; then the one that saves most, then the one that loses least."""
    return min(probes, key=lambda probe: (probe.cost, -probe.macs_saved, probe.score_lost))


@dataclass(frozen=True)
class Check:
    """Validation scores of a stage's largest and smallest subnet, after `step` steps of the training."""

    step: int
    spent: float
    largest: float
    smallest: float


def stalled(checks: Sequence[Check], *, patience: int, improvement: float) -> bool:
    """Return whether neither subnet rose by more than `improvement` above its best in the last `patience` checks."""
    if len(checks) <= patience:
        return False
    earlier, recent = checks[:-patience], checks[-patience:]
    return all(
        max(getattr(check, name) for check in recent) <= max(getattr(check, name) for check in earlier) + improvement
        for name in ("largest", "smallest")
    )


def teacher_gap(teacher: float, largest: float, smallest: float) -> float:
    """Return how far the mean of two subnets' scores is below the teacher's: a share of the latter, in [0, 1]."""
    return min(1.0, max(0.0, 1.0 - 0.5 * (largest + smallest) / teacher)) if teacher > 0 else 0.0


@dataclass(frozen=True)
class Panel:
    """Validation scores of the three subnets of `Ladders.panel`, whatever a stage allows.

    `loss` is the mean of their cross entropies on the same samples, in nats.
    """

    smallest: float
    middle: float
    largest: float
    loss: float

    @property
    def score(self) -> float:
        """The mean score."""
        return (self.smallest + self.middle + self.largest) / 3


def gains(history: Sequence[FinishedStage]) -> dict[str, float]:
    """Return for each mode that was tried how far the panel's loss fell per share of the budget that was spent on it.

    The fall is that of the loss's logarithm: losses shrink by factors, so that an early stage gains no more than a late
    one that is as good. What was spent between two panels counts for the mode of the stage before the later one.
    """
    falls: dict[str, float] = {}
    shares: dict[str, float] = {}
    before, spent = None, 0.0
    for finished in history:
        spent += finished.spent
        if finished.panel is not None:
            mode, loss = finished.stage.mode, max(finished.panel.loss, _LEAST_LOSS)
            if mode and before is not None:
                falls[mode] = falls.get(mode, 0.0) + math.log(before / loss)
                shares[mode] = shares.get(mode, 0.0) + spent
            before, spent = loss, 0.0
    return {mode: fall / shares[mode] for mode, fall in falls.items()}


@dataclass(frozen=True)
class Stage:
    """A stage as planned.

    `annealing` "training": the learning rate follows one cosine over the whole budget; "stage": one of its own over the
    stage's share. `subnets` are trained in every step, or with `in_turn` one of them in each step, which lets the same
    work make more updates; with `sandwich` two of them are the largest and the smallest.
    `sampling` "front" draws the others by MACs and looks for those near the front. With `growth` they are small at
    first: their bound of MACs rises from the smallest subnet's to the largest's over that part of the stage.
    `sort_channels`: channels were sorted by importance before the stage. `watched`: its largest and smallest subnet are
    scored at every check. `judged`: the panel is scored at its end, on behalf of the `mode` of training that the stage
    tries. `reason`, `gap`, `gains` and `probes` record why the stage is what it is.
    """

    name: str
    allowed: Domains
    share: float
    learning_rate: float = 1.0
    annealing: Literal["training", "stage"] = "training"
    subnets: int = 1
    sandwich: bool = False
    in_turn: bool = False
    sampling: Literal["uniform", "front"] = "uniform"
    growth: float = 0.0
    kd_weight: float = 1.0
    sort_channels: bool = False
    watched: bool = False
    judged: bool = False
    mode: str = ""
    reason: str = ""
    gap: float | None = None
    gains: Mapping[str, float] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()

    def most_macs(self, smallest: int, largest: int, done: float) -> float:
        """Return how many MACs a random subnet may have once the share `done` of the stage is spent."""
        grown = done / self.growth if self.growth else 1.0
        return smallest + (largest - smallest) * min(1.0, grown)


@dataclass(frozen=True)
class FinishedStage:
    """A stage as it went: its steps and the share of the budget they spent, measuring included, and why it ended."""

    stage: Stage
    first_step: int
    steps: int
    spent: float
    ended: str
    checks: tuple[Check, ...] = ()
    panel: Panel | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: the stage's own fields and these in one mapping."""
        plain = asdict(self)
        stage = plain.pop("stage")
        stage["allowed"] = {name: list(values) for name, values in stage["allowed"].items()}
        stage["probes"] = [
            {**asdict(probe), "cost": probe.cost if math.isfinite(probe.cost) else None} for probe in self.stage.probes
        ]
        return {**stage, **plain, "checks": list(plain["checks"])}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> FinishedStage:
        """Return the stage that `as_dict` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        record = dict(plain)
        own = {key: record.pop(key) for key in ("first_step", "steps", "spent", "ended")}
        checks = tuple(Check(**check) for check in record.pop("checks"))
        panel = record.pop("panel")
        probes = [_probe(probe) for probe in record.pop("probes")]
        stage = Stage(**record, probes=tuple(probes))
        if stage.annealing not in ("training", "stage") or stage.sampling not in ("uniform", "front"):
            raise ValueError(f"stage {stage.name}: annealing {stage.annealing!r}, sampling {stage.sampling!r}")
        if not 0.0 <= stage.growth <= 1.0:
            raise ValueError(f"stage {stage.name}: growth {stage.growth!r} is no share")
        allowed = {name: tuple(values) for name, values in stage.allowed.items()}
        measured = None if panel is None else Panel(**panel)
        return cls(replace(stage, allowed=allowed), checks=checks, panel=measured, **own)


def _probe(plain: Mapping[str, Any]) -> Probe:
    """Return a probe as a stage's record has it; earlier versions called scores accuracies."""
    fields = {name.replace("accuracy", "score"): value for name, value in plain.items() if name != "cost"}
    return Probe(**fields)


@dataclass(frozen=True)
class ShrinkingRecord:
    """The stages of a supernet's training as they went; `budget_macs` is in the unit of `kdnas.training.supernet`."""

    policy: str
    space: str
    family: str
    budget_macs: int
    stages: tuple[FinishedStage, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: mappings, lists, numbers and text."""
        own = {name: getattr(self, name) for name in ("policy", "space", "family", "budget_macs")}
        return {**own, "stages": [finished.as_dict() for finished in self.stages]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ShrinkingRecord:
        """Return the record that `as_dict` wrote. Raises ValueError on anything else, naming the stage."""
        at = "the record"
        try:
            stages = []
            for number, stage in enumerate(plain["stages"], 1):
                at = f"stage {number}"
                stages.append(FinishedStage.from_dict(stage))
            at = "the record"
            return cls(**{**plain, "stages": tuple(stages)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{at} of the shrinking is damaged: {what}") from error
