"""How much each choice matters for accuracy, by functional ANOVA over the search's own scores.

Paper: Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance" (ICML 2014).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdnas.audit.sample import search_fidelity
from kdnas.record.front import measured_values
from kdnas.record.records import RunRecord
from kdnas.report.searched import Searched, searched

FEWEST_TRIALS = 10
"""Below so many complete trials an importance is noise and none is shown."""
# Trees times trials: the forest shrinks as trials grow, because a live page is redrawn after every trial.
_TREE_TRIALS = 6400
_FILLINGS = 4
"""So often is what a student does not have drawn anew: one drawing would correlate with the accuracy by chance."""


@dataclass(frozen=True)
class Importance:
    """The share of accuracy's variance by choice, in [0, 1], summing to 1; empty when it cannot be known."""

    shares: Mapping[str, float]
    explanation: str


def importance(run: RunRecord) -> Importance:
    """Return the importance for accuracy of every choice and tuned setting that varied among the complete trials."""
    complete = [
        trial
        for trial in run.trials
        if trial.state == "complete" and math.isfinite(measured_values(trial).get("accuracy", math.nan))
    ]
    # Of a search with rungs: the scores of the one that most students reached.
    usual = search_fidelity(complete) if complete else None
    trials = [trial for trial in complete if trial.fidelity == usual]
    accuracies = [measured_values(trial)["accuracy"] for trial in trials]
    if len(trials) < FEWEST_TRIALS:
        return Importance({}, f"Needs at least {FEWEST_TRIALS} complete trials; there are {len(trials)}.")
    columns = searched(run, trials)
    if not columns or min(accuracies) == max(accuracies):
        return Importance({}, "Every complete trial made the same choices or reached the same accuracy.")
    return Importance(
        _shares(columns, accuracies),
        f"Share of the accuracy’s variance that each choice explains by itself: functional ANOVA (Hutter et al., ICML "
        f"2014), a random forest on the {len(trials)} brief scores of the search {trials[0].fidelity.reached}. Choices "
        "that took one value are left out. Where a student does not have a choice, such as the width of a stage left "
        "out, that says nothing of the choice and counts for the one that left it out, such as the stage’s depth. It "
        "describes the students that this search visited, not the whole space, and with few trials it is rough: read "
        "the order, not the digits.",
    )


def _shares(columns: Sequence[Searched], accuracies: Sequence[float]) -> dict[str, float]:
    """Return the main effects, as the mean over several fillings of what students do not have."""
    gaps = any(value is None for column in columns for value in column.values)
    trees = max(4, min(32, _TREE_TRIALS // len(accuracies)))
    fillings = _FILLINGS if gaps else 1
    rng = np.random.default_rng(0)
    found = [_effects(_filled(columns, rng), accuracies, -(-trees // fillings)) for _ in range(fillings)]
    means = {column.name: sum(effects[column.name] for effects in found) / fillings for column in columns}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _filled(columns: Sequence[Searched], rng: np.random.Generator) -> dict[str, tuple[Searched, list[Any]]]:
    """Return the columns with each gap drawn from the values that other students have.

    A student without the choice would score the same with any value of it. A value of its own for the gap would tell
    again, in every choice that vanishes with a stage, that the stage is left out.
    """
    filled = {}
    for column in columns:
        known = [value for value in column.values if value is not None]
        drawn = rng.integers(len(known), size=len(column.values))
        values = [known[pick] if value is None else value for value, pick in zip(column.values, drawn, strict=True)]
        filled[column.name] = (column, values)
    return filled


def _effects(
    columns: Mapping[str, tuple[Searched, list[Any]]], accuracies: Sequence[float], trees: int
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
        study.add_trials(
            [
                optuna.trial.create_trial(
                    value=accuracy,
                    params={name: values[i] for name, (values, _) in encoded.items()},
                    distributions={name: distribution for name, (_, distribution) in encoded.items()},
                )
                for i, accuracy in enumerate(accuracies)
            ]
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, max_depth=32, seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
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
