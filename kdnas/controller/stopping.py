"""When a search is over: its budget is spent, or its hypervolume has stopped growing."""

from __future__ import annotations

from dataclasses import dataclass

from kdnas.core.fidelity import Fidelity
from kdnas.core.words import counted
from kdnas.record.front import hypervolume_over_time
from kdnas.record.records import RunRecord
from kdnas.study.config import Budget, StudyConfig
from kdnas.workshop.jobs import continues

_ROUNDING = 1e-9
_KEPT_FOR_PROMOTIONS = 0.1
"""Of a budget, in a search with rungs: the last part is for students that are there. On NAS-Bench-201 (12 and 200
epochs, 60 seeds, 20 to 80 trials) a tenth costs no hypervolume, a fifth or more does."""


@dataclass(frozen=True)
class Spent:
    """What a search has used up, what runs counted in full."""

    trials: int
    full_trainings: float
    seconds: float
    """Of searching, the training of a supernet included."""


def full_trainings(config: StudyConfig, fidelity: Fidelity, goes_on: bool) -> float:
    """Return what a trial at a rung costs, in units of one final training: its amount over the final one's.

    Where the evaluator `goes_on` from the weights of the rung below, only the further epochs count.
    """
    rung = config.fidelities.index(fidelity)
    amount = fidelity.amount
    if goes_on and continues(config, rung):
        amount -= config.fidelities[rung - 1].amount
    return amount / config.final_fidelity.amount


def spent_by(run: RunRecord, goes_on: bool, seconds: float) -> Spent:
    """Return what the trials of `run` have used up, running ones too. An interrupted one is run again and is free.

    A trial that was refused after measuring has trained nothing; a failed one counts as if it had trained to its end.
    What the run's supernet cost is counted too.
    """
    counted = [trial for trial in run.trials if trial.state != "interrupted"]
    trained = [trial.fidelity for trial in counted if trial.state != "infeasible"]
    cost = {fidelity: full_trainings(run.config, fidelity, goes_on) for fidelity in set(trained)}
    whole = sum(cost[fidelity] for fidelity in trained)
    if run.supernet is not None:
        whole += run.supernet.amount / run.config.final_fidelity.amount
        seconds += run.supernet.train_seconds
    return Spent(len(counted), whole, seconds)


def why_over(run: RunRecord, spent: Spent, next_cost: float) -> str:
    """Return why no further trial may begin, which would cost `next_cost` full trainings; empty where one may."""
    budget = run.config.budget
    if budget.trials is not None and spent.trials >= budget.trials:
        return f"the budget of {counted(budget.trials, 'trial')} is spent"
    if budget.full_trainings is not None and spent.full_trainings + next_cost > budget.full_trainings + _ROUNDING:
        return (
            f"the budget of {budget.full_trainings:g} full trainings is spent: {spent.full_trainings:.4g} are used, "
            f"and the next trial costs {next_cost:.4g}"
        )
    if budget.wall_clock_s is not None and spent.seconds >= budget.wall_clock_s:
        return f"the budget of {budget.wall_clock_s:g} s of searching is spent"
    return stagnation(run)


def is_ending(run: RunRecord, spent: Spent, climb: float) -> bool:
    """Whether what is left of the budget is for promotions: a tenth of it, or less than one new student's way up.

    `climb` is what a student costs through all rungs, in full trainings. Without that the last students would stay
    where they began, however good.
    """
    budget, rungs = run.config.budget, len(run.config.fidelities)
    if rungs == 1:
        return False
    if budget.trials is not None:
        kept = max(rungs - 1, round(_KEPT_FOR_PROMOTIONS * budget.trials))
        if budget.trials - spent.trials <= kept:
            return True
    if budget.full_trainings is not None:
        left = budget.full_trainings - spent.full_trainings
        if left + _ROUNDING < max(climb, _KEPT_FOR_PROMOTIONS * budget.full_trainings):
            return True
    return budget.wall_clock_s is not None and spent.seconds >= (1 - _KEPT_FOR_PROMOTIONS) * budget.wall_clock_s


def stagnation(run: RunRecord) -> str:
    """Return, in words, that the hypervolume of the highest rung's scores does not grow any more; empty while it does.

    It must have grown by more than the stated share within the last so many complete trials of that rung.
    """
    limit = run.config.budget.stagnation
    volumes = [] if limit is None else [0.0, *(volume for _, _, volume in hypervolume_over_time(run))]
    if limit is None or len(volumes) <= limit.trials or not _has_full_scores(run):
        return ""
    before, now = volumes[-1 - limit.trials], volumes[-1]
    if now > before * (1 + limit.gain):
        return ""
    grown = f"by {100 * (now / before - 1):.2g} %" if before > 0 else "not at all"
    return (
        f"the hypervolume stagnates: the last {limit.trials} scores {run.config.fidelities[-1].reached} made it grow "
        f"{grown}, and more than {100 * limit.gain:g} % was asked"
    )


def budget_in_words(budget: Budget) -> str:
    """Return the limits of a search, such as `40 trials` or `12 full trainings, at most 3600 s`."""
    limits = [counted(budget.trials, "trial")] if budget.trials is not None else []
    limits += [f"{budget.full_trainings:g} full trainings"] if budget.full_trainings is not None else []
    limits += [f"{budget.wall_clock_s:g} s"] if budget.wall_clock_s is not None else []
    return ", at most ".join(limits)


def _has_full_scores(run: RunRecord) -> bool:
    top = run.config.fidelities[-1]
    return any(trial.state == "complete" and trial.fidelity == top for trial in run.trials)
