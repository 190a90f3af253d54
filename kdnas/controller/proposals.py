"""Proposals that are worth a training: no student twice, none that a cheap constraint already rules out.

`ValidProposals` wraps any Optuna sampler. What the sampler proposes is checked before it reaches the record; a rejected
proposal is asked for again, then mutated, then drawn at random, then looked for by descent and by enumeration. Whether
a proposal is acceptable costs microseconds, so no training and no record line is ever spent on a duplicate.

Where a search has rungs, most samplers ignore them: they are shown each student once, at comparable scores
(`own_trials`). None is shown a trial that another tool added: it may be of another space, and it is not recorded what
its score means.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from kdnas.core.arch import Scalar
from kdnas.core.fidelity import Fidelity
from kdnas.core.promotion import lifted
from kdnas.core.space import Assignment
from kdnas.record.rows import showing
from kdnas.samplers import ChoosesSteps, Ladder, Step

_ASKS = 2
_MUTATIONS = 300
_RANDOM_DRAWS = 20_000
_DESCENT = 4_000
_ENUMERABLE = 300_000

Acceptable = Callable[[Mapping[str, Scalar]], bool]


class ValidProposals(optuna.samplers.BaseSampler):
    """The sampler `inner`, restricted to proposals for which `acceptable` is true.

    `excess` is how far a proposal lies beyond the constraints (0: within), which leads to the few students of a tight
    space that chance does not meet. `fidelities` are the rungs of a search that has them. `exhausted` states that, in
    words, when no acceptable proposal could be found; it is empty otherwise. Every proposal has the values of `fixed`.
    """

    def __init__(
        self,
        inner: optuna.samplers.BaseSampler,
        domain: Mapping[str, BaseDistribution],
        acceptable: Acceptable,
        *,
        seed: int,
        excess: Callable[[Mapping[str, Scalar]], float] | None = None,
        fidelities: Sequence[Fidelity] = (),
        fixed: Mapping[str, Scalar] = MappingProxyType({}),
    ):
        self._inner = inner
        self._domain = dict(domain)
        self._acceptable: Acceptable = lambda params: acceptable({**params, **fixed})
        self._fixed = fixed
        self._rng = np.random.default_rng(seed)
        self._excess = excess
        self._fidelities = () if getattr(inner, "reads_fidelities", False) else tuple(fidelities)
        self.exhausted = ""

    @property
    def chooses_steps(self) -> bool:
        """Whether the inner sampler knows what is worth doing next."""
        return isinstance(self._inner, ChoosesSteps)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole domain: every choice is proposed together."""
        return self._domain

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Assignment:
        """Return an acceptable proposal, or any at all with `exhausted` set."""
        return {**self._propose(study, trial), **self._fixed}

    def next_step(self, study: optuna.Study, ladder: Ladder) -> Step | None:
        """Return what the inner sampler, one that chooses steps, would do next."""
        assert isinstance(self._inner, ChoosesSteps)
        return self._inner.next_step(self._shown(study), ladder)

    def _shown(self, study: optuna.Study) -> optuna.Study:
        """Return the study as the inner sampler may know it."""
        foreign = any(map(_is_foreign, study.get_trials(deepcopy=False)))
        return showing(study, own_trials(study, self._fidelities)) if foreign or self._fidelities else study

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> Assignment:
        proposal = previous = None
        seen = self._shown(study)
        for _ in range(_ASKS):
            proposal = self._ask(seen, trial)
            if self._acceptable(proposal):
                return proposal
            if proposal == previous:  # a deterministic proposal will not change by asking again
                break
            previous = proposal
        assert proposal is not None
        for count in range(_MUTATIONS):
            mutant = self._mutate(proposal, changes=1 + count // 100)
            if self._acceptable(mutant):
                return mutant
        for _ in range(_RANDOM_DRAWS):
            drawn = {name: self._draw(distribution) for name, distribution in self._domain.items()}
            if self._acceptable(drawn):
                return drawn
        return self._descend(proposal) or self._enumerate() or self._give_up(proposal)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the inner sampler's value; only reached for parameters outside the domain."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Let the inner sampler prepare."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Let the inner sampler learn."""
        self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Keep the seed: proposals are a function of it and of the history."""

    def _ask(self, study: optuna.Study, trial: FrozenTrial) -> Assignment:
        space = self._inner.infer_relative_search_space(study, trial)
        related = self._inner.sample_relative(study, trial, space)
        return {
            name: related[name] if name in related else self._inner.sample_independent(study, trial, name, distribution)
            for name, distribution in self._domain.items()
        }

    def _descend(self, proposal: Assignment) -> Assignment | None:
        """Mutate towards the constraints and, once within them, from student to student until one is new."""
        if self._excess is None:
            return None
        current, distance = proposal, self._excess(proposal)
        for _ in range(_DESCENT):
            mutant = self._mutate(current, changes=1 + int(self._rng.integers(2)))
            if self._acceptable(mutant):
                return mutant
            if (other := self._excess(mutant)) <= distance:
                current, distance = mutant, other
        return None

    def _mutate(self, proposal: Mapping[str, Scalar], changes: int) -> Assignment:
        names = self._rng.choice(list(self._domain), size=min(changes, len(self._domain)), replace=False)
        return {**proposal, **{str(name): self._draw(self._domain[str(name)]) for name in names}}

    def _draw(self, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[self._rng.integers(len(distribution.choices))]
        if isinstance(distribution, IntDistribution):
            return int(self._rng.choice(np.arange(distribution.low, distribution.high + 1, distribution.step)))
        assert isinstance(distribution, FloatDistribution)
        if distribution.log:
            return float(np.exp(self._rng.uniform(np.log(distribution.low), np.log(distribution.high))))
        return float(self._rng.uniform(distribution.low, distribution.high))

    def _assignments(self) -> float:
        """Return the number of assignments, infinite where a setting is continuous."""
        return math.prod(_size(distribution) or math.inf for distribution in self._domain.values())

    def _enumerate(self) -> Assignment | None:
        """Search a small space to its end, from a random place so that proposals stay spread."""
        total = self._assignments()
        if total > _ENUMERABLE:
            return None
        sizes = [_size(distribution) for distribution in self._domain.values()]
        start = int(self._rng.integers(int(total)))
        for offset in range(int(total)):
            rest, proposal = (start + offset) % int(total), {}
            for (name, distribution), size in zip(self._domain.items(), sizes, strict=True):
                rest, index = divmod(rest, size)
                proposal[name] = _value(distribution, index)
            if self._acceptable(proposal):
                return proposal
        return None

    def _give_up(self, proposal: Assignment) -> Assignment:
        proven = self._assignments() <= _ENUMERABLE
        self.exhausted = (
            "every student of the space that meets the constraints has been scored"
            if proven
            else "no further student that meets the constraints was found in the space"
        )
        return proposal


class Preset(optuna.samplers.BaseSampler):
    """Proposes what it is given: a student that is run again, or trained on."""

    def __init__(self, params: Mapping[str, Scalar], domain: Mapping[str, BaseDistribution]):
        self._params = params
        self._domain = domain

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole domain."""
        return dict(self._domain)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Assignment:
        """Return what was given."""
        return dict(self._params)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return what was given for a parameter."""
        return self._params[param_name]


def own_trials(study: optuna.Study, fidelities: Sequence[Fidelity] = ()) -> list[FrozenTrial]:
    """Return the trials of the study's search alone, where there are `fidelities` as `at_one_fidelity` shows them."""
    own = [_hidden(trial) if _is_foreign(trial) else trial for trial in study.get_trials(deepcopy=False)]
    return at_one_fidelity(own, fidelities) if fidelities else own


def at_one_fidelity(trials: Sequence[FrozenTrial], fidelities: Sequence[Fidelity]) -> list[FrozenTrial]:
    """Return `trials` for a sampler that takes every score for one of the same kind.

    Each student counts once, as the trial that proposed it, with the score of the highest rung it reached; one that did
    not get as far as others have is shown with the score that is typical of what it has
    (`kdnas.core.promotion.lifted`). Its later trials are shown as failed ones without a proposal, which no sampler
    learns from.
    """
    places = {fidelity: rung for rung, fidelity in enumerate(fidelities)}
    first: dict[str, int] = {}
    """By student: the index of the trial that stands for it."""
    scores: dict[int, np.ndarray] = {}
    shown = list(trials)
    for index, trial in enumerate(trials):
        stored = trial.user_attrs.get("fidelity")
        rung = None if stored is None else places.get(Fidelity.from_dict(stored))
        if rung is None or trial.user_attrs.get("interrupted"):
            continue
        student = json.dumps([trial.user_attrs["arch_id"], trial.user_attrs["tuned"]], sort_keys=True)
        stands = first.setdefault(student, index)
        if stands != index:
            shown[index] = _hidden(trial)
        if trial.state == TrialState.COMPLETE:
            table = scores.setdefault(stands, np.full((len(fidelities), len(trial.values)), np.nan))
            table[rung] = trial.values
    if scores:
        for index, values in zip(scores, lifted(np.array(list(scores.values()))), strict=True):
            shown[index] = copy.copy(trials[index])
            shown[index].values = values.tolist()
    return shown


def _is_foreign(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and "fidelity" not in trial.user_attrs


def _hidden(trial: FrozenTrial) -> FrozenTrial:
    """Return `trial` as a failed one without a proposal, which no sampler learns from."""
    hidden = copy.copy(trial)
    hidden.params, hidden.distributions = {}, {}
    hidden.state, hidden.values = TrialState.FAIL, None
    return hidden


def _size(distribution: BaseDistribution) -> int:
    """Return the number of values, 0 for a continuous range."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    return 0


def _value(distribution: BaseDistribution, index: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[index]
    assert isinstance(distribution, IntDistribution)
    return distribution.low + index * distribution.step
