"""Budgets and stagnation, on hand-made trials."""

from __future__ import annotations

import dataclasses

import pytest
from synthetic_run import complete, run_of

from kdnas.controller.stopping import Spent, budget_in_words, spent_by, stagnation, why_over
from kdnas.core.fidelity import Fidelity
from kdnas.study.config import Budget, Rung, Stagnation

RUNGS = (Rung(epochs=3, data_fraction=0.5), Rung(epochs=6, data_fraction=0.5))


def run(trials, *, budget, rungs=RUNGS):
    """Return a run over rungs of 1.5 and 3 passes over the data; its final trainings are of 5."""
    whole = run_of(trials)
    training = whole.config.training.model_copy(update={"epochs": 6, "data_fraction": 0.5})
    final = whole.config.final.model_copy(update={"epochs": 5})
    update = {"budget": budget, "rungs": rungs, "training": training, "final": final}
    return dataclasses.replace(whole, config=whole.config.model_copy(update=update))


def at(trial, epochs, **changed):
    return dataclasses.replace(trial, fidelity=Fidelity(epochs, 0.5), **changed)


def test_interrupted_trials_are_free_and_refused_ones_cost_no_training():
    trials = [
        at(complete(0, 0.5, 50), 3),
        at(complete(1, 0.6, 60), 6),
        at(complete(2, 0.6, 60), 3, state="failed"),
        at(complete(3, 0.6, 60), 3, state="infeasible"),
        at(complete(4, 0.6, 60), 6, state="interrupted"),
        at(complete(5, 0.6, 60), 3, state="running"),
    ]
    anew = spent_by(run(trials, budget=Budget()), goes_on=False, seconds=7.0)
    assert (anew.trials, anew.seconds) == (5, 7.0)
    assert anew.full_trainings == pytest.approx((1.5 + 3 + 1.5 + 1.5) / 5)
    going_on = spent_by(run(trials, budget=Budget()), goes_on=True, seconds=0.0)
    assert going_on.full_trainings == pytest.approx((1.5 + 1.5 + 1.5 + 1.5) / 5)


def test_the_first_limit_ends_the_search_and_a_cost_that_just_fits_does_not():
    spent = Spent(trials=10, full_trainings=2.7, seconds=100.0)

    def why(cost=0.3, **limits):
        return why_over(run([], budget=Budget(**limits)), spent, cost)

    assert why(trials=11) == why(full_trainings=3.0) == why(wall_clock_s=100.5) == ""
    assert why(trials=10) == "the budget of 10 trials is spent"
    assert why(full_trainings=2.9) == (
        "the budget of 2.9 full trainings is spent: 2.7 are used, and the next trial costs 0.3"
    )
    assert why(wall_clock_s=100) == "the budget of 100 s of searching is spent"
    assert why(trials=100, wall_clock_s=50) == "the budget of 50 s of searching is spent"


def test_only_scores_of_the_highest_rung_can_stagnate():
    # Three on one front, then three that add nothing (macs below the reference of 100, accuracy above 0.1).
    values = [(0.5, 50), (0.7, 60), (0.8, 70), (0.3, 80), (0.3, 81), (0.3, 82)]
    trials = [complete(number, accuracy, macs) for number, (accuracy, macs) in enumerate(values)]
    budget = Budget(trials=100, stagnation=Stagnation(trials=3, gain=0.01))
    low = [at(trial, 3) for trial in trials]
    assert stagnation(run(low, budget=budget)) == ""
    full = [at(trial, 6) for trial in trials]
    assert stagnation(run(full[:5], budget=budget)) == ""
    printed = stagnation(run(full, budget=budget))
    assert "the last 3 scores after 6 epochs of 50 % of the data made it grow by 0 %" in printed
    assert "more than 1 % was asked" in printed
    assert stagnation(run(full, budget=Budget(trials=100))) == ""


def test_a_budget_in_words_names_every_limit():
    assert budget_in_words(Budget()) == "40 trials"
    assert budget_in_words(Budget(trials=1)) == "1 trial"
    assert budget_in_words(Budget(full_trainings=12, wall_clock_s=60)) == "12 full trainings, at most 60 s"
