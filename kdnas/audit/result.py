"""What an audit found: how well the brief scores rank students as longer training does, and what would do better.

Everything is computed from the record, so it can be shown again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kdnas.audit.sample import (
    FEWEST,
    macs_bands,
    retrainings,
    scored_trials,
    scores_at,
    scoring_configs,
    search_fidelity,
)
from kdnas.core.fidelity import Fidelity
from kdnas.core.forecast import left_out
from kdnas.core.rank import (
    Estimate,
    agreement,
    agreement_gain,
    mean_agreement,
    partial_agreement,
    percentile_interval,
    resampled_taus,
)
from kdnas.record.records import AuditTraining, RunRecord, TrialRecord

TARGET_TAU = 0.8
SCORE = "score"
"""What the search's own score is called among what ranks students; the others are costs, by their names."""
SCOPES = ("all", "best quarter", "equal MACs")
_FEWEST_BEST = 5


@dataclass(frozen=True)
class AuditedStudent:
    """A student of the sample with its search `score` and those of its longer trainings, by seed."""

    trial: TrialRecord
    score: float
    band: int | None
    """Its band of equal MACs."""
    longer: Mapping[int, float]
    curves: Mapping[int, Mapping[int, float]]
    """Scores by epoch, by seed."""

    @property
    def mean(self) -> float:
        """The mean score of the longer trainings."""
        return sum(self.longer.values()) / len(self.longer)


@dataclass(frozen=True)
class Scope:
    """The tau of the search score, and of each cost alone, against longer training among some of the students."""

    name: str
    taus: Mapping[str, Estimate | None]
    """By what ranks: `SCORE`, and "params" and "macs" alone. Positive where what is better ranks as longer training."""


@dataclass(frozen=True)
class CostBaseline:
    """How much better the search score ranks than a cost that is known without training."""

    gain: Estimate | None
    """Tau of the score minus tau of the cost, over all students (paired bootstrap)."""
    gain_in_bands: Estimate | None
    """The same inside the bands of equal MACs."""
    partial: Estimate | None
    """Kendall's partial tau of the score with the cost held fixed."""


@dataclass(frozen=True)
class NeededFidelity:
    """From which epoch of a longer training on its score agrees with the end of one at tau >= 0.8.

    `epochs` is None where it never does; `low` and `high` are the middle 95 % of the resamples, infinite where one
    never does. `crossed`: start and end are of different seeds, else they are of the same training, which
    flatters.
    """

    epochs: int | None
    low: float
    high: float
    crossed: bool
    curve: tuple[tuple[int, Estimate], ...]


@dataclass(frozen=True)
class LossAgreement:
    """How brief trainings under one loss rank; `gain` is over the study's own loss on the same students."""

    loss: str
    tau: Estimate | None
    gain: Estimate | None
    forecast: Estimate | None = None
    """Tau of what the score and the costs forecast together, each student by what the others show."""


@dataclass(frozen=True)
class RungAgreement:
    """How one kind of score ranks the students, next to how the costs of the same students rank them."""

    fidelity: Fidelity
    taus: Mapping[str, Estimate | None]
    """As those of a scope; None where too few students have such a score."""
    gain: Estimate | None
    """Tau of the score minus tau of the parameter count (paired bootstrap)."""


@dataclass(frozen=True)
class AuditResult:
    """An audit as far as it is made. Below six students `scopes` is empty and nothing else is known."""

    brief: Fidelity
    longer: Fidelity
    asked_students: int
    asked_seeds: int
    trainings: int
    """Longer trainings made or reused, of `asked_students` * `asked_seeds`."""
    students: tuple[AuditedStudent, ...]
    tolerance: float
    """Relative width of a band of equal MACs."""
    scopes: tuple[Scope, ...] = ()
    baselines: Mapping[str, CostBaseline] = field(default_factory=dict)
    """By cost: "params", "macs"."""
    one_training: Estimate | None = None
    """Tau of the search score against single longer trainings, mean over seeds: comparable with `ceiling`."""
    ceiling: Estimate | None = None
    """Tau of one longer training against another of the same students, mean over pairs of seeds."""
    needed: NeededFidelity | None = None
    forecast: Estimate | None = None
    """Tau of what the search score and the costs forecast together, each student by what the others show."""
    losses: tuple[LossAgreement, ...] = ()
    rungs: tuple[RungAgreement, ...] = ()
    """Lowest first; empty where the search has one kind of score."""

    @property
    def overall(self) -> Estimate | None:
        """Tau of the search score over all students of the sample."""
        return self.scopes[0].taus[SCORE] if self.scopes else None


def audit_result(run: RunRecord) -> AuditResult | None:
    """Return what the run's last audit found; None where none was begun."""
    audit = run.audit
    scored = scored_trials(run)
    if audit is None or not scored:
        return None
    bands, tolerance = macs_bands(scored)
    longer = _longer_trainings(run)
    students = tuple(
        AuditedStudent(
            trial,
            trial.values[run.score.name],
            bands.get(trial.number),
            {training.seed: training.score for training in longer[trial.number]},
            {training.seed: dict(training.curve) for training in longer[trial.number] if training.curve},
        )
        for trial in scored
        if trial.number in audit.students and longer.get(trial.number)
    )
    made = sum(len(student.longer) for student in students)
    known = (search_fidelity(scored), audit.fidelity, len(audit.students), audit.seeds, made, students, tolerance)
    if len(students) < FEWEST:
        return AuditResult(*known)
    costs = [name for name in ("params", "macs") if all(name in student.trial.values for student in students)]
    better = [_larger_is_better(run, student) for student in students]
    return AuditResult(
        *known,
        scopes=_scopes(better, costs),
        baselines={name: _baseline(better, name) for name in costs},
        one_training=_one_training(better, audit.seeds),
        ceiling=_ceiling(better, audit.seeds),
        needed=_needed(better, audit.fidelity.epochs),
        forecast=_forecast(_of(better, SCORE), better, costs),
        losses=_losses(run, better, costs, [training for training in audit.trainings if training.fidelity == known[0]]),
        rungs=_rungs(run, better, costs),
    )


def _larger_is_better(run: RunRecord, student: AuditedStudent) -> AuditedStudent:
    """Return `student` with scores that rank as its costs are expected to: larger is better."""
    return replace(
        student,
        score=-run.score.minimised(student.score),
        longer={seed: -run.score.minimised(value) for seed, value in student.longer.items()},
        curves={
            seed: {epoch: -run.score.minimised(value) for epoch, value in curve.items()}
            for seed, curve in student.curves.items()
        },
    )


def _longer_trainings(run: RunRecord) -> dict[int, list[AuditTraining]]:
    """Return the trainings of the audit's fidelity and seeds by trial, finalists' retrainings among them."""
    audit = run.audit
    assert audit is not None
    reused = [
        AuditTraining(number, repeat.seed, repeat.score, repeat.fidelity, "", repeat.train_seconds)
        for number, repeat in retrainings(run)
    ]
    own = [training for training in audit.trainings if not training.loss]
    found: dict[int, dict[int, AuditTraining]] = {}
    for training in [*reused, *own]:  # of the same seed the audit's own, which may have looked on the way
        if training.fidelity == audit.fidelity and training.seed < audit.seeds:
            found.setdefault(training.number, {})[training.seed] = training
    return {number: [by_seed[seed] for seed in sorted(by_seed)] for number, by_seed in found.items()}


def _scopes(students: Sequence[AuditedStudent], costs: Sequence[str]) -> tuple[Scope, ...]:
    means = [student.mean for student in students]
    best = sorted(students, key=lambda student: -student.mean)[: math.ceil(len(students) / 4)]
    found = [Scope(SCOPES[0], {name: agreement(_of(students, name), means) for name in (SCORE, *costs)})]
    few = len(best) < _FEWEST_BEST
    best_means = [student.mean for student in best]
    found.append(
        Scope(
            SCOPES[1],
            {name: None if few else agreement(_of(best, name), best_means) for name in (SCORE, *costs)},
        )
    )
    if all(student.band is not None for student in students):
        bands = _bands(students)
        found.append(
            Scope(
                SCOPES[2],
                {name: agreement(_of(students, name), means, within=bands) for name in (SCORE, *costs)},
            )
        )
    return tuple(found)


def _baseline(students: Sequence[AuditedStudent], cost: str) -> CostBaseline:
    scores, costs = _of(students, SCORE), _of(students, cost)
    means = [student.mean for student in students]
    banded = all(student.band is not None for student in students)
    return CostBaseline(
        agreement_gain(scores, costs, means),
        agreement_gain(scores, costs, means, within=_bands(students)) if banded else None,
        partial_agreement(scores, means, given=costs),
    )


def _complete(students: Sequence[AuditedStudent], seeds: int) -> list[AuditedStudent]:
    """Return the students that were trained with every seed; none where they are too few."""
    whole = [student for student in students if len(student.longer) == seeds]
    return whole if len(whole) >= FEWEST else []


def _one_training(students: Sequence[AuditedStudent], seeds: int) -> Estimate | None:
    whole = _complete(students, seeds)
    scores = _of(whole, SCORE)
    return mean_agreement([(scores, [student.longer[seed] for student in whole]) for seed in range(seeds)])


def _ceiling(students: Sequence[AuditedStudent], seeds: int) -> Estimate | None:
    whole = _complete(students, seeds)
    runs = [[student.longer[seed] for student in whole] for seed in range(seeds)]
    return mean_agreement([(runs[a], runs[b]) for a in range(seeds) for b in range(a)])


def _needed(students: Sequence[AuditedStudent], last: int) -> NeededFidelity | None:
    """Return the learning-curve estimate; None where too few trainings were looked at on the way."""
    looked = [student for student in students if student.curves]
    if len(looked) < FEWEST:
        return None
    seeds = sorted(set.intersection(*(set(student.curves) for student in looked)))
    others = {
        seed: [[end for other, end in student.longer.items() if other != seed] for student in looked] for seed in seeds
    }
    crossing = [seed for seed in seeds if all(others[seed])]
    if not seeds:
        return None
    ends = {
        seed: [sum(row) / len(row) for row in others[seed]] if crossing else [s.longer[seed] for s in looked]
        for seed in crossing or seeds
    }
    epochs = sorted(set.intersection(*(set(student.curves[seed]) for student in looked for seed in ends)))
    rankings = {
        epoch: [([student.curves[seed][epoch] for student in looked], end) for seed, end in ends.items()]
        for epoch in epochs
    }
    if not crossing:
        rankings.pop(last, None)  # the end of a training agrees with itself
    estimates = [(epoch, mean_agreement(pairs)) for epoch, pairs in rankings.items()]
    curve = tuple((epoch, estimate) for epoch, estimate in estimates if estimate is not None)
    if len(curve) < 2:
        return None
    steps = np.array([epoch for epoch, _ in curve], dtype=float)
    draws = np.stack(
        [np.mean([resampled_taus(x, y) for x, y in rankings[epoch]], axis=0) for epoch, _ in curve], axis=1
    )
    found = _first_lasting(steps, np.array([[estimate.value for _, estimate in curve]]))[0]
    low, high = percentile_interval(_first_lasting(steps, draws))
    return NeededFidelity(int(found) if math.isfinite(found) else None, low, high, bool(crossing), curve)


def _first_lasting(epochs: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Return the first of `epochs` [E] from which on each tau [R, E] is at least the target; infinite where none is."""
    lasting = np.flip(np.logical_and.accumulate(np.flip(taus >= TARGET_TAU, axis=1), axis=1), axis=1)
    return np.where(lasting.any(axis=1), epochs[lasting.argmax(axis=1)], math.inf)


def _forecast(scores: Sequence[float], students: Sequence[AuditedStudent], costs: Sequence[str]) -> Estimate | None:
    """Return the tau of what `scores` and `costs` forecast together (`kdnas.core.forecast`)."""
    means = np.array([student.mean for student in students])
    known = np.array([_of(students, name) for name in costs], dtype=float).reshape(len(costs), len(students)).T
    return agreement(left_out(np.array(scores, dtype=float), means, known), means)


def _losses(
    run: RunRecord,
    students: Sequence[AuditedStudent],
    costs: Sequence[str],
    trainings: Sequence[AuditTraining],
) -> tuple[LossAgreement, ...]:
    scores: dict[str, dict[int, float]] = {}
    for training in trainings:
        if training.loss:
            scores.setdefault(training.loss, {})[training.number] = -run.score.minimised(training.score)
    found = []
    for loss, by_number in scores.items():
        trained = [student for student in students if student.trial.number in by_number]
        if len(trained) < FEWEST:
            continue
        other, means = [by_number[s.trial.number] for s in trained], [s.mean for s in trained]
        gain = agreement_gain(other, _of(trained, SCORE), means)
        found.append(LossAgreement(loss, agreement(other, means), gain, _forecast(other, trained, costs)))
    return tuple(sorted(found, key=lambda row: -(row.tau.value if row.tau else -2.0)))


def _rungs(run: RunRecord, students: Sequence[AuditedStudent], costs: Sequence[str]) -> tuple[RungAgreement, ...]:
    assert run.audit is not None
    fidelities = [config.fidelities[-1] for config in scoring_configs(run.config)]
    lower = [fidelity for fidelity in fidelities if fidelity.amount < run.audit.fidelity.amount]
    if len(lower) < 2:
        return ()
    found = []
    for fidelity in lower:
        scores = scores_at(run, fidelity)
        scored = [student for student in students if student.trial.number in scores]
        means = [student.mean for student in scored]
        own = [-run.score.minimised(scores[student.trial.number]) for student in scored]
        rankers = {SCORE: own, **{name: _of(scored, name) for name in costs}}
        few = len(scored) < FEWEST
        taus = {name: None if few else agreement(ranker, means) for name, ranker in rankers.items()}
        known = not few and "params" in rankers
        found.append(RungAgreement(fidelity, taus, agreement_gain(own, rankers["params"], means) if known else None))
    return tuple(found)


def _of(students: Sequence[AuditedStudent], name: str) -> list[float]:
    return [student.score if name == SCORE else student.trial.values[name] for student in students]


def _bands(students: Sequence[AuditedStudent]) -> list[int]:
    return [-1 if student.band is None else student.band for student in students]
