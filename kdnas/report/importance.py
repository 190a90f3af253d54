"""How much each choice matters for accuracy, by functional ANOVA over the search's own scores.

Paper: Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance" (ICML 2014).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdnas.report.wording import OFF
from kdnas.study.audit_sample import search_fidelity
from kdnas.study.front import measured_values
from kdnas.study.records import RunRecord, TrialRecord

FEWEST_TRIALS = 10
"""Below so many complete trials an importance is noise and none is shown."""
# Trees times trials: the forest shrinks as trials grow, because a live page is redrawn after every trial.
_TREE_TRIALS = 6400


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
    columns = _varying(trials)
    if not columns or min(accuracies) == max(accuracies):
        return Importance({}, "Every complete trial made the same choices or reached the same accuracy.")
    return Importance(
        _shares(columns, accuracies),
        f"Share of the accuracy’s variance that each choice explains by itself: functional ANOVA (Hutter et al., ICML "
        f"2014), a random forest on the {len(trials)} brief scores of the search. It describes the students that this "
        "search visited, not the whole space, and with few trials it is rough: read the order, not the digits.",
    )


def _varying(trials: Sequence[TrialRecord]) -> dict[str, list[Any]]:
    names = sorted({name for trial in trials for name in trial.arch.choices})
    columns = {name: [trial.arch.choices.get(name, OFF) for trial in trials] for name in names}
    tuned = sorted(set.intersection(*(set(trial.tuned) for trial in trials)))
    columns |= {name: [trial.tuned[name] for trial in trials] for name in tuned}
    return {name: values for name, values in columns.items() if len(set(values)) > 1}


def _shares(columns: Mapping[str, Sequence[Any]], accuracies: Sequence[float]) -> dict[str, float]:
    import optuna

    encoded = {name: _encoded(values) for name, values in columns.items()}
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
        evaluator = optuna.importance.FanovaImportanceEvaluator(
            n_trees=max(4, min(32, _TREE_TRIALS // len(accuracies))), max_depth=32, seed=0
        )
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}


def _encoded(values: Sequence[Any]) -> tuple[list[Any], Any]:
    """Return the column as Optuna takes it: tuned floats as they are, ordered numbers by rank, all else by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    domain = set(values)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in domain)
    if numbers and any(isinstance(value, float) for value in domain):
        return list(values), FloatDistribution(min(domain), max(domain))
    if numbers:
        ranks = {value: rank for rank, value in enumerate(sorted(domain))}
        return [ranks[value] for value in values], IntDistribution(0, len(ranks) - 1)
    return [str(value) for value in values], CategoricalDistribution(sorted(str(value) for value in domain))
