"""One race: a sampler on a table, from one seed, as the hypervolume ratio after each full-training unit it spent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from tables import Table

from kdnas.controller.proposals import ValidProposals
from kdnas.core.arch import Scalar
from kdnas.core.fidelity import Fidelity
from kdnas.core.hypervolume import hypervolume
from kdnas.core.pareto import non_dominated
from kdnas.core.promotion import Rule, Rung, promotable
from kdnas.record.storage import distributions
from kdnas.samplers import SAMPLERS, ChoosesSteps, Ladder, SamplerContext, Step

RUNGS = (Fidelity(12), Fidelity(200))


@dataclass(frozen=True)
class Racer:
    """A sampler in the race. `units` limits what it spends, `seeds` how often it is run."""

    name: str
    title: str
    units: int
    seeds: int
    member: str = ""
    """kdnas's sampler, by name; else `raw` makes Optuna's own, driven by plain ask and tell."""
    options: Mapping[str, Any] = field(default_factory=dict)
    raw: Callable[[int], optuna.samplers.BaseSampler] | None = None
    asks: int = 800
    """Proposals, repeated ones counted, after which the race of a raw sampler ends."""
    enough: float = 0.985
    """The race ends once it has this hypervolume ratio."""
    rule: Rule | Literal["model"] | None = None
    """With two rungs: who is promoted; `model` asks the sampler itself, as `kdnas search` does by default."""
    picks: Callable[[Table, list[int], np.random.Generator], int] | None = None
    """Of a table and its rows that are trained: the next row, for what is no Optuna sampler."""


@dataclass(frozen=True)
class Curve:
    """Hypervolume ratios [N] after `units` [N] full trainings, and the row [N] that was trained, -1 for a short one."""

    units: list[float]
    ratios: list[float]
    rows: list[int]


class _Track:
    """The front so far, and the curve that led to it."""

    def __init__(self, table: Table):
        self._table = table
        self._front = np.zeros((0, 2))
        self.spent = 0.0
        self.curve = Curve([], [], [])

    @property
    def ratio(self) -> float:
        return self.curve.ratios[-1] if self.curve.ratios else 0.0

    def add(self, row: int | None, cost: float) -> None:
        """Count a training: of `row` in full, or a short one that proves nothing yet."""
        self.spent += cost
        ratio = self.ratio
        if row is not None:
            points = np.concatenate([self._front, self._table.points([row])])
            self._front = points[non_dominated(points)]
            ratio = hypervolume(self._front, self._table.reference()) / self._table.true_volume
        self.curve.units.append(round(self.spent, 4))
        self.curve.ratios.append(round(ratio, 6))
        self.curve.rows.append(-1 if row is None else row)


def race(table: Table, racer: Racer, seed: int) -> Curve:
    """Return the curve of one race."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if racer.raw is not None:
            return _raw_race(table, racer, seed)
        if racer.picks is not None:
            return _picked_race(table, racer, seed)
        if racer.rule == "model":
            return _model_race(table, racer, seed)
        return _two_rung_race(table, racer, seed) if racer.rule else _kdnas_race(table, racer, seed)


def _study(table: Table) -> optuna.Study:
    return optuna.create_study(directions=[objective.direction for objective in table.objectives])


def _raw_race(table: Table, racer: Racer, seed: int) -> Curve:
    """Drive Optuna's own sampler; a student that it repeats costs nothing the second time."""
    assert racer.raw is not None
    study, domain, track = _study(table), distributions(table.space, {}), _Track(table)
    seen: set[int] = set()
    study.sampler = racer.raw(seed)
    for _ in range(racer.asks):
        if track.spent >= racer.units or track.ratio >= racer.enough:
            break
        trial = study.ask(fixed_distributions=domain)
        row = table.row(trial.params)
        study.tell(trial, table.values(row))
        if row not in seen:
            seen.add(row)
            track.add(row, 1.0)
    return track.curve


def _picked_race(table: Table, racer: Racer, seed: int) -> Curve:
    assert racer.picks is not None
    track, rng = _Track(table), np.random.default_rng(seed)
    while track.spent < racer.units and track.ratio < racer.enough:
        track.add(racer.picks(table, track.curve.rows, rng), 1.0)
    return track.curve


class _Asking:
    """Asks a member of kdnas's registry as `kdnas search` does: a sampler made anew for each proposal."""

    def __init__(self, table: Table, racer: Racer, seed: int, rungs: tuple[Fidelity, ...] = ()):
        self._table, self._racer, self._seed, self._rungs = table, racer, seed, rungs
        self._domain = distributions(table.space, {})
        self._seen: set[int] = set()
        self.study = _study(table)

    def sampler(self) -> tuple[optuna.samplers.BaseSampler, int]:
        """Return the racer's sampler for the next proposal, and its seed."""
        seed = (1_000_003 * (self._seed + 1) + 7919 * len(self.study.get_trials(deepcopy=False))) % 2**32
        context = SamplerContext(
            self._table.space,
            self._table.objectives,
            self._racer.units,
            seed,
            price=self._table.price,
            acceptable=self._acceptable,
            reference_point=self._table.reference_point,
            fidelities=self._rungs,
        )
        return SAMPLERS.build(self._racer.member, context, **self._racer.options), seed

    def ask(self, made: tuple[optuna.samplers.BaseSampler, int] | None = None) -> optuna.Trial | None:
        """Return a trial of a student not asked for before, by a sampler that is `made`; None where none is left."""
        inner, seed = made or self.sampler()
        sampler = ValidProposals(inner, self._domain, self._acceptable, seed=seed, fidelities=self._rungs)
        self.study.sampler = sampler
        trial = self.study.ask(fixed_distributions=self._domain)
        if sampler.exhausted:
            return None
        self._seen.add(self._table.row(trial.params))
        return trial

    def tell(self, params: Mapping[str, Scalar], trial: optuna.Trial, rung: int) -> None:
        """Tell a trial its score at a rung."""
        row = self._table.row(params)
        trial.set_user_attr("arch_id", str(row))
        trial.set_user_attr("tuned", {})
        trial.set_user_attr("fidelity", RUNGS[rung].as_dict())
        self.study.tell(trial, self._table.values(row, short=rung == 0))

    def again(self, params: Mapping[str, Scalar]) -> optuna.Trial:
        """Return a new trial of a student that is trained on."""
        self.study.enqueue_trial(dict(params))
        return self.study.ask(fixed_distributions=self._domain)

    def _acceptable(self, params: Mapping[str, Scalar]) -> bool:
        return self._table.row(params) not in self._seen


def _kdnas_race(table: Table, racer: Racer, seed: int) -> Curve:
    asking, track = _Asking(table, racer, seed), _Track(table)
    while track.spent < racer.units and track.ratio < racer.enough:
        trial = asking.ask()
        if trial is None:
            break
        asking.tell(trial.params, trial, rung=1)
        track.add(table.row(trial.params), 1.0)
    return track.curve


def _model_race(table: Table, racer: Racer, seed: int) -> Curve:
    """Do what the sampler finds worth most, as `kdnas search` does; a full training begins anew (no warm start)."""
    asking, track = _Asking(table, racer, seed, RUNGS), _Track(table)
    ladder = Ladder((table.short_cost, 1.0), 1.0, (1 / table.short_cost,))
    while track.spent < racer.units and track.ratio < racer.enough:
        sampler, seed_of_step = asking.sampler()
        assert isinstance(sampler, ChoosesSteps)
        promoted, rung = sampler.next_step(asking.study, ladder) or Step(None)
        if promoted is not None:
            params = asking.study.get_trials(deepcopy=False)[promoted].params
            trial: optuna.Trial | None = asking.again(params)
            rung = 1
        else:
            trial = asking.ask((sampler, seed_of_step))
        if trial is None:
            break
        asking.tell(trial.params, trial, rung)
        track.add(table.row(trial.params) if rung else None, 1.0 if rung else table.short_cost)
    return track.curve


def _two_rung_race(table: Table, racer: Racer, seed: int) -> Curve:
    """Train students briefly, and those that kdnas's rule promotes in full from the start (no warm start)."""
    asking, track = _Asking(table, racer, seed, RUNGS), _Track(table)
    begun: list[dict[str, Scalar]] = []
    full: set[int] = set()
    while track.spent < racer.units and track.ratio < racer.enough:
        promoted = _promoted(table, racer.rule, [table.row(params) for params in begun], full)
        if promoted is not None:
            trial = asking.again(begun[promoted])
            row = table.row(begun[promoted])
            asking.tell(begun[promoted], trial, rung=1)
            full.add(row)
            track.add(row, 1.0)
            continue
        trial_or_none = asking.ask()
        if trial_or_none is None:
            break
        begun.append(dict(trial_or_none.params))
        asking.tell(begun[-1], trial_or_none, rung=0)
        track.add(None, table.short_cost)
    return track.curve


def _promoted(table: Table, rule: Any, rows: list[int], full: set[int]) -> int | None:
    """Return which of the short trainings is followed by a full one, by kdnas's promotion rule; None for no one."""
    if not rows:
        return None
    started = np.array([row in full for row in rows])
    above = np.array([table.points([row])[0] if row in full else [np.nan, np.nan] for row in rows])
    scores = np.array([table.values(row, short=True) for row in rows]) * np.array([-1.0, 1.0])
    rung = Rung(scores, above, started, np.zeros(len(rows), dtype=bool))
    best = promotable(rule, rung, eta=1 / (2 * table.short_cost), reference=table.reference())
    return best[0] if best else None
