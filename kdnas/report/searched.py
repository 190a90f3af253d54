"""What a search varied, student by student: which of it is stuck at an end of its range, and how much each matters.

Importance is by functional ANOVA over the search's own scores (Hutter, Hoos and Leyton-Brown, "An Efficient Approach
for Assessing Hyperparameter Importance", ICML 2014).
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdnas.audit.sample import search_fidelity
from kdnas.core.arch import Scalar, normalise_scalar
from kdnas.core.space import SearchSpace
from kdnas.core.words import counted
from kdnas.record.front import comparable, front, measured_values
from kdnas.record.records import RunRecord, TrialRecord
from kdnas.record.rows import showing
from kdnas.report.wording import duration, label, number
from kdnas.study.tune import TuneRange

FEWEST_BEST = 3
_BEST_SHARE = 0.2
"""Of the scored students: those that count as the best ones."""
_END_SHARE, _TIP_SHARE = 0.25, 0.1
"""Of a range of real numbers: what counts as one of its ends for the best students, and for the very best."""
_MET_BY_CHANCE = 0.05
"""So likely may the best students be to meet at one end of what was searched evenly."""
_BETTER_BY_CHANCE = 0.01
"""So likely may students at that end be to score so much better than the others do: every setting is looked at."""


@dataclass(frozen=True)
class Searched:
    """A choice of the space or a tuned setting of the recipe, as some trials have it."""

    name: str
    values: tuple[Scalar | None, ...]
    """One a trial; None where that does not have it, such as the width of a stage that is left out."""
    domain: tuple[Scalar, ...]
    """What the study offers, in its order; of a range the two ends."""
    tuned: bool = False
    range: bool = False
    """Whether any real number between two ends was offered."""
    log: bool = False

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, which have an order."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.domain)

    def is_at(self, value: Scalar | None, end: float, share: float) -> bool:
        """Whether a number is at `end`, the low or high one of the domain; of a range, within `share` of its length."""
        if not self.range:
            return value == end
        low, high, at, border = (math.log(v) if self.log else v for v in map(float, (*self.domain, value, end)))  # type: ignore[arg-type]
        return abs(at - border) <= share * (high - low)


def searched(run: RunRecord, trials: Sequence[TrialRecord]) -> list[Searched]:
    """Return what truly varies among `trials`: choices in the order of the space, then tuned settings.

    A choice that takes one value wherever a student has it did not vary, however many students lack it: that they do is
    another choice's doing.
    """
    space = run.lock.space
    rows = [_assignment(trial, space) for trial in trials]
    depths = {name for row in rows for name in row if name.endswith(".depth")}
    rows = [{**dict.fromkeys(depths, 0), **row} for row in rows]  # an arch does not speak of a stage that it lacks
    order = [choice.name for choice in space.choices] if space is not None else []
    names = dict.fromkeys([*order, *sorted({name for row in rows for name in row})])
    stated = {choice.name: choice.values for choice in space.choices} if space is not None else {}
    found = []
    for name in names:
        values = tuple(row.get(name) for row in rows)
        known = {value for value in values if value is not None}
        if len(known) > 1:
            domain = stated.get(name, ())
            found.append(Searched(name, values, domain if known <= set(domain) else _in_order(known)))
    return found + _tuned(run, trials)


def stuck_at_bounds(run: RunRecord) -> list[str]:
    """Return in words which choices and tuned settings the best students have at an end of their range.

    Said where at least four in five of the best fifth are there, the very best among them, where an even search would
    leave so many there in less than one of twenty cases, and where students there score better than the others (Mann
    and Whitney's test, 1 %). A depth of 0 is the end of what there is, not of what was offered.
    """
    trials, losses = losses_of(run, comparable(run))
    if len(trials) < 2 * FEWEST_BEST:
        return []
    best = sorted(range(len(trials)), key=losses.__getitem__)
    best = best[: max(FEWEST_BEST, round(_BEST_SHARE * len(trials)))]
    sentences = [_stuck(setting, losses, best) for setting in searched(run, trials) if setting.numeric]
    return [sentence for sentence in sentences if sentence]


def _stuck(setting: Searched, losses: Sequence[float], best: Sequence[int]) -> str:
    numbers = [float(value) for value in setting.domain]
    low, high = min(numbers), max(numbers)
    by_chance = _END_SHARE if setting.range else 1 / len(numbers)
    for end, which, more in ((low, "lower", "smaller"), (high, "upper", "larger")):
        there = [None if value is None else setting.is_at(value, end, _END_SHARE) for value in setting.values]
        having = [index for index in best if there[index] is not None]
        hits = sum(bool(there[index]) for index in having)
        at_end = [loss for loss, is_there in zip(losses, there, strict=True) if is_there]
        others = [loss for loss, is_there in zip(losses, there, strict=True) if is_there is False]
        if (
            len(having) < FEWEST_BEST
            or not setting.is_at(setting.values[having[0]], end, _TIP_SHARE)
            or hits < 0.8 * len(having)
            or _at_least(hits, len(having), by_chance) >= _MET_BY_CHANCE
            or (len(others) >= FEWEST_BEST and _better_by_chance(at_end, others) >= _BETTER_BY_CHANCE)
            or end == 0 == low
        ):
            continue
        count = f"{hits} of the {len(having)} best students"
        if setting.range:
            return (
                f"{setting.name} is stuck at the {which} end of its range, {number(low)} to {number(high)} ({count}): "
                f"{more} values may be better, so widen `tune`."
            )
        widened = "`tune`" if setting.tuned else "the space as far as the constraints allow"
        return (
            f"{setting.name} is stuck at {number(end)}, its {'smallest' if end == low else 'largest'} value ({count}): "
            f"{more} ones may be better, so widen {widened}."
        )
    return ""


def tuned_in_words(run: RunRecord) -> list[str]:
    """Return what was tuned, which values the front has of it, and what it cost; nothing where nothing was tuned."""
    trials, losses = losses_of(run, comparable(run))
    members = [member.trial for member in front(run)]
    settings = [setting for setting in searched(run, trials) if setting.tuned]
    if not settings or not members:
        return []
    again = len(trials) - len({trial.arch for trial in trials})
    made = [trial for trial in run.trials if trial.state in ("complete", "failed")]
    spent = sum(trial.train_seconds for trial in run.trials)
    sentences = [
        f"{', '.join(setting.name for setting in settings)} {'was' if len(settings) == 1 else 'were'} tuned with the "
        f"architecture, within the search’s {counted(len(made), 'trial')} and {duration(spent)} of training; "
        f"{again} of {len(trials)} scores are of a network that had one with other settings."
    ]
    for setting in settings:
        known: list[Any] = [trial.tuned[setting.name] for trial in members if setting.name in trial.tuned]
        if setting.range:
            if known:
                low, high = min(known), max(known)
                shown = number(low) if low == high else f"{number(low)} to {number(high)}"
                sentences.append(f"{setting.name} of the front: {shown}.")
            continue
        parts = []
        for value in setting.domain:
            mine = [index for index, other in enumerate(setting.values) if other == value]
            if not mine:
                parts.append(f"{value}: not tried")
                continue
            best = min(mine, key=losses.__getitem__)
            seconds = sum(trials[index].train_seconds for index in mine)
            parts.append(
                f"{value}: {counted(len(mine), 'score')} in {duration(seconds)}, the best "
                f"{run.score.shown(measured_values(trials[best])[run.score.name])}, {known.count(value)} on the front"
            )
        sentences.append(f"{setting.name}: {'; '.join(parts)}.")
    return [*sentences, "Their networks differ too, which compares no settings with each other: `kdnas compare` does."]


def losses_of(run: RunRecord, trials: Iterable[TrialRecord]) -> tuple[list[TrialRecord], list[float]]:
    """Return those of `trials` with a finite score, and the scores so that smaller is better."""
    scores = [(trial, measured_values(trial).get(run.score.name, math.nan)) for trial in trials]
    known = [(trial, run.score.minimised(value)) for trial, value in scores if math.isfinite(value)]
    return [trial for trial, _ in known], [loss for _, loss in known]


def _better_by_chance(ours: Sequence[float], others: Sequence[float]) -> float:
    """Return how likely `ours` are so much below `others` by chance (Mann and Whitney's U, normal approximation)."""
    ranked = sorted(others)
    wins = sum(len(others) - 0.5 * (bisect_left(ranked, a) + bisect_right(ranked, a)) for a in ours)
    pairs = len(ours) * len(others)
    deviation = math.sqrt(pairs * (len(ours) + len(others) + 1) / 12)
    return 0.5 * math.erfc((wins - pairs / 2) / deviation / math.sqrt(2)) if pairs else 1.0


def _at_least(hits: int, tries: int, share: float) -> float:
    """Return how likely at least `hits` of `tries` are, each with chance `share` (binomial)."""
    return sum(math.comb(tries, k) * share**k * (1 - share) ** (tries - k) for k in range(hits, tries + 1))


def _assignment(trial: TrialRecord, space: SearchSpace | None) -> dict[str, Scalar]:
    """Return what was chosen for `trial` and is active in its student.

    An arch numbers its stages anew where one is left out and spells equal networks alike, so what was proposed shows
    better what was chosen. Records without it are read from the arch.
    """
    if trial.proposed and space is not None:
        chosen = {choice.name for choice in space.choices}
        active = space.active({name: value for name, value in trial.proposed.items() if name in chosen})
        return {
            name: normalise_scalar(value)
            for name, value in active.items()
            if name in chosen and not _is_removed(name, active)
        }
    return trial.arch.choices


def _is_removed(name: str, chosen: Mapping[str, Scalar]) -> bool:
    """Whether `name` belongs to a stage of depth 0."""
    stage, _, rest = name.rpartition(".")
    return bool(stage) and rest != "depth" and chosen.get(f"{stage}.depth") == 0


def _tuned(run: RunRecord, trials: Sequence[TrialRecord]) -> list[Searched]:
    found = []
    for name in sorted({name for trial in trials for name in trial.tuned}):
        values = tuple(trial.tuned.get(name) for trial in trials)
        known = {value for value in values if value is not None}
        asked = run.config.tune.get(name)
        if len(known) < 2:
            continue
        if asked is None or isinstance(asked, TuneRange):
            ends = (min(known), max(known)) if asked is None else (asked.low, asked.high)
            log = asked is not None and asked.log
            found.append(Searched(name, values, ends, tuned=True, range=True, log=log))
        else:
            found.append(Searched(name, values, asked, tuned=True))
    return found


def _in_order(values: set[Scalar]) -> tuple[Scalar, ...]:
    return tuple(sorted(values, key=lambda value: (isinstance(value, str), value)))


FEWEST_TRIALS = 10
"""Below so many complete trials an importance is noise and none is shown."""
# Trees times trials: the forest shrinks as trials grow, because a live page is redrawn after every trial.
_TREE_TRIALS = 6400
_MOST_TRIALS = 1000
"""As many are drawn of more: to marginalise a tree over a setting of real numbers takes the square of its size."""
_FILLINGS = 4
"""So often is what a student does not have drawn anew: one drawing would correlate with the score by chance."""


@dataclass(frozen=True)
class Importance:
    """The share of the scores' variance by choice, in [0, 1], summing to 1; empty when it cannot be known."""

    shares: Mapping[str, float]
    explanation: str


def importance(run: RunRecord) -> Importance:
    """Return the importance for the score of every choice and tuned setting that varied among the complete trials."""
    complete, _ = losses_of(run, (trial for trial in run.trials if trial.state == "complete"))
    # Of a search with rungs: the scores of the one that most students reached.
    usual = search_fidelity(complete) if complete else None
    everyone = [trial for trial in complete if trial.fidelity == usual]
    drawn = np.random.default_rng(0).permutation(len(everyone))[:_MOST_TRIALS]
    trials = [everyone[place] for place in sorted(drawn)]
    scores = [measured_values(trial)[run.score.name] for trial in trials]
    if len(trials) < FEWEST_TRIALS:
        return Importance({}, f"Needs at least {FEWEST_TRIALS} complete trials; there are {len(trials)}.")
    columns = searched(run, trials)
    share = "" if len(trials) == len(everyone) else f" of {len(everyone)}, drawn at random,"
    if not columns or min(scores) == max(scores):
        return Importance({}, "Every complete trial made the same choices or reached the same score.")
    return Importance(
        _shares(columns, scores),
        f"Share of the variance of {label(run.score.name)} that each choice explains by itself: functional ANOVA "
        f"(Hutter et al., ICML 2014), a random forest on {len(trials)}{share} brief scores of the search "
        f"{trials[0].fidelity.reached}. Choices that took one value are left out. Where a student does not have a "
        "choice, such as the width of a stage left out, that does not depend on the choice and counts for the one that "
        "left it out, such as the stage’s depth. It describes the students that this search visited, not the whole "
        "space, and with few trials it is rough: read the order, not the digits.",
    )


def _shares(columns: Sequence[Searched], scores: Sequence[float]) -> dict[str, float]:
    """Return the main effects, as the mean over several fillings of what students do not have."""
    gaps = any(value is None for column in columns for value in column.values)
    trees = max(4, min(32, _TREE_TRIALS // len(scores)))
    fillings = _FILLINGS if gaps else 1
    rng = np.random.default_rng(0)
    found = [_effects(_filled(columns, rng), scores, -(-trees // fillings)) for _ in range(fillings)]
    means = {column.name: sum(effects[column.name] for effects in found) / fillings for column in columns}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _filled(columns: Sequence[Searched], rng: np.random.Generator) -> dict[str, tuple[Searched, list[Any]]]:
    """Return the columns with each gap drawn from the values that other students have.

    A student without the choice would score the same with any value of it. A value of its own for the gap would
    separate those again, in every choice that vanishes with a stage, that the stage is left out.
    """
    filled = {}
    for column in columns:
        known = [value for value in column.values if value is not None]
        drawn = rng.integers(len(known), size=len(column.values))
        values = [known[pick] if value is None else value for value, pick in zip(column.values, drawn, strict=True)]
        filled[column.name] = (column, values)
    return filled


def _effects(
    columns: Mapping[str, tuple[Searched, list[Any]]], scores: Sequence[float], trees: int
) -> dict[str, float]:
    import optuna

    encoded = {name: _encoded(column, values) for name, (column, values) in columns.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(direction="maximize")
        finally:
            optuna.logging.set_verbosity(verbosity)
        trials = [
            optuna.trial.create_trial(
                value=score,
                params={name: values[i] for name, (values, _) in encoded.items()},
                distributions={name: distribution for name, (_, distribution) in encoded.items()},
            )
            for i, score in enumerate(scores)
        ]
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, max_depth=32, seed=0)
        found = optuna.importance.get_param_importances(showing(study, trials), evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}


def _encoded(column: Searched, values: Sequence[Any]) -> tuple[list[Any], Any]:
    """Return the column as Optuna takes it: real numbers as they are, ordered ones by rank, all else by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    domain = {value for value in column.values if value is not None}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in domain)
    if numbers and any(isinstance(value, float) for value in domain):
        low, high = (float(end(domain)) for end in (min, max))
        return list(values), FloatDistribution(low, high, log=column.log)
    if numbers:
        ranks = {value: rank for rank, value in enumerate(sorted(domain))}
        return [ranks[value] for value in values], IntDistribution(0, len(ranks) - 1)
    return [str(value) for value in values], CategoricalDistribution(sorted(str(value) for value in domain))
