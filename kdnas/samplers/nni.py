"""NNI's own tuners (github.com/microsoft/nni, 3.0), in process.

They take one objective: every proposal weighs the objectives anew (`_chebyshev`). A tuner is made for each proposal and
lives through the history: what was proposed, what came of it, what still runs. So a proposal is a function of the seed
and of the history alone, and a search that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from kdnas.core.seeds import derive_seed
from kdnas.core.space import Assignment
from kdnas.samplers import SAMPLERS, SamplerContext
from kdnas.samplers._chebyshev import augmented_chebyshev, rotating_weights

if TYPE_CHECKING:
    from kdnas.samplers._nni_tuners import SeededTuner


@SAMPLERS.register
def nni(
    context: SamplerContext,
    *,
    tuner: Literal["TPE", "Evolution", "GP", "Random", "GridSearch"] = "TPE",
    population_size: Annotated[int, Field(ge=2, le=1000)] = 32,
) -> optuna.samplers.BaseSampler:
    """NNI's tuners, `nni:TPE` for short, in process, over rotating scalarisations. The population is Evolution's."""
    return _Replayed(context, tuner, population_size)


class _Replayed(optuna.samplers.BaseSampler):
    """Asks an NNI tuner that has lived through the study's history."""

    def __init__(self, context: SamplerContext, tuner: str, population_size: int):
        self._context = context
        self._tuner = tuner
        self._population_size = population_size
        self._asked = 0
        self._independent = optuna.samplers.RandomSampler(seed=context.seed % 2**32)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the domain of the trials so far; empty before there is any."""
        past = _past(study, trial)
        return dict(past[0].distributions) if past else {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Assignment:
        """Return the tuner's proposal, another each time; nothing when it has no more or there is no history."""
        if not search_space:
            return {}
        self._asked += 1
        seed = derive_seed(self._context.seed, "nni", self._asked) % 2**32
        past = [other for other in _past(study, trial) if other.distributions.keys() == search_space.keys()]
        losses = _losses(past, study.directions, rotating_weights(len(study.directions), trial.number))
        with _quiet(), _python_random_state(seed):
            from kdnas.samplers._nni_tuners import seeded_tuner

            tuner = seeded_tuner(self._tuner, seed, self._population_size)
            tuner.update_search_space({name: _range(known) for name, known in search_space.items()})
            _replay(tuner, past, losses, search_space)
            return self._ask(tuner, 1 + max((other.number for other in past), default=0), search_space)

    def _ask(self, tuner: SeededTuner, number: int, domain: Mapping[str, BaseDistribution]) -> Assignment:
        """Return the first acceptable proposal, else the last. What is refused is reported as a failed trial."""
        params: Assignment = {}
        for own in range(number, number + tuner.asks):
            proposals = tuner.generate_multiple_parameters([own], st_callback=lambda *_: None)
            if not proposals:  # NNI's NoMoreTrialError
                break
            params = {name: _from_nni(proposals[0][name], known) for name, known in domain.items()}
            if self._context.acceptable(params):
                break
            tuner.trial_end(own, False)
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value: for the first trial of all, and where the tuner has no more."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def _past(study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
    """Return the other trials that have a proposal, each proposal once, in the order in which they were made.

    Of a student that was trained longer later the first score counts: it compares with everybody's first.
    """
    found: dict[str, FrozenTrial] = {}
    for other in study.get_trials(deepcopy=False):
        if other.number == trial.number or not other.params:
            continue
        student = repr(sorted(other.params.items()))
        if student not in found or found[student].state is not TrialState.COMPLETE:
            found[student] = other
    return sorted(found.values(), key=lambda other: other.number)


def _losses(past: Sequence[FrozenTrial], directions: Sequence[StudyDirection], weights: np.ndarray) -> dict[int, float]:
    """Return the scalarised loss of every complete trial, by its number."""
    complete = [trial for trial in past if trial.state is TrialState.COMPLETE]
    if not complete:
        return {}
    signs = [-1.0 if direction is StudyDirection.MAXIMIZE else 1.0 for direction in directions]
    losses = augmented_chebyshev(np.array([trial.values for trial in complete]) * signs, weights)
    return {trial.number: float(loss) for trial, loss in zip(complete, losses, strict=True)}


def _replay(
    tuner: SeededTuner,
    past: Sequence[FrozenTrial],
    losses: Mapping[int, float],
    domain: Mapping[str, BaseDistribution],
) -> None:
    """Let `tuner` live through the trials, as NNI reports them: a result before the end; what runs is left running."""
    for trial in past:
        values = {name: _to_nni(trial.params[name], known) for name, known in domain.items()}
        tuner.adopt(trial.number, values)
        if trial.number in losses:
            tuner.receive_trial_result(trial.number, values, losses[trial.number])
        if trial.state.is_finished():
            tuner.trial_end(trial.number, trial.number in losses)


def _size(known: IntDistribution | CategoricalDistribution) -> int:
    if isinstance(known, CategoricalDistribution):
        return len(known.choices)
    return (known.high - known.low) // known.step + 1


def _range(known: BaseDistribution) -> dict[str, Any]:
    """Return NNI's description of a choice or range."""
    if isinstance(known, FloatDistribution):
        return {"_type": "loguniform" if known.log else "uniform", "_value": [known.low, known.high]}
    assert isinstance(known, IntDistribution | CategoricalDistribution)
    return {"_type": "randint", "_value": [0, _size(known)]}


def _to_nni(value: Any, known: BaseDistribution) -> int | float:
    if isinstance(known, FloatDistribution):
        return float(value)
    if isinstance(known, CategoricalDistribution):
        return int(known.to_internal_repr(value))
    assert isinstance(known, IntDistribution)
    return (int(value) - known.low) // known.step


def _from_nni(value: Any, known: BaseDistribution) -> Any:
    if isinstance(known, FloatDistribution):
        return min(max(float(value), known.low), known.high)
    if isinstance(known, CategoricalDistribution):
        return known.choices[int(value)]
    assert isinstance(known, IntDistribution)
    return known.low + int(value) * known.step


@contextlib.contextmanager
def _python_random_state(seed: int) -> Iterator[None]:
    """Seed what NNI draws from Python's own generator, and give its state back."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what NNI prints, logs and warns of from the user: it logs every duplicate that it meets."""
    imported, disabled = "nni" in sys.modules, logging.root.manager.disable
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            import nni

            if not imported:
                nni.silence_stdout()  # on import it makes itself a handler
            yield
        finally:
            logging.disable(disabled)
