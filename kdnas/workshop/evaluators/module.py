"""Scores that the user's own function gives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from kdnas.core.arch import Arch, Scalar
from kdnas.core.objective import Kind, Quantity, refuse_unmeasurable
from kdnas.costs import COSTS
from kdnas.errors import ConfigError, Problem, TrialError
from kdnas.record.lock import DataDescription, Findings
from kdnas.record.records import Result
from kdnas.user_code import UserCodeFailed, UserFunction, load_user_function
from kdnas.workshop.evaluators import EVALUATORS, Evaluator, EvaluatorContext, names
from kdnas.workshop.jobs import Job


@EVALUATORS.register
class Module(Evaluator):
    """Scores by a function of your own: `module:function`, or `path/to/file.py:function` under the data root.

    It is called as `function(choices, epochs=..., data_fraction=..., seed=..., **options)`, `choices` being the active
    choices by name, with `resolution_fraction=...` too where that is below 1, and returns the quantities by name:
    the score that the study's objectives name, such as `accuracy` in [0, 1], and every objective and bounded cost that
    `price` does not return. What it raises fails the trial. Its file's folder and the data root are importable by its
    code.

    Args:
        context: The study.
        function: Scores a student; runs in the workers.
        price: Called as `price(choices, **options)`: the quantities known without training, in microseconds. Without it
            nothing is known before a trial.
        options: Keyword arguments of both.
        chance: The score that is worth nothing: 0 for a fraction unless stated.
    """

    def __init__(
        self,
        context: EvaluatorContext,
        *,
        function: str,
        price: str | None = None,
        options: dict[str, Any] | None = None,
        chance: float | None = None,
    ):
        super().__init__(context)
        self._name = function
        self._score = load_user_function(function, context.data_root)
        self._price = None if price is None else load_user_function(price, context.data_root)
        self._options = options or {}
        score = context.config.score
        if chance is None and not score.is_fraction:
            raise ConfigError(Problem("evaluator.chance", f"must state the {score.name} that is worth nothing"))
        if chance is not None and score.is_fraction and not 0.0 <= chance < 1.0:
            raise ConfigError(Problem("evaluator.chance", f"must be at least 0 and below 1, got {chance:g}"))
        self._worst = chance or 0.0
        try:
            self._priced = self._price_of(context.space.active(context.space.random(np.random.default_rng(0))))
        except TrialError as error:  # it would fail every trial
            raise ConfigError(Problem("evaluator.price", str(error))) from error
        for note in dict.fromkeys((*self._score.notes, *(self._price.notes if self._price else ()))):
            context.notify(note)

    @cached_property
    def quantities(self) -> Mapping[str, Quantity]:
        """The score and every cost that the study names; those that `price` returns are cheap."""
        config = self.context.config
        named = {*config.objectives, *config.bounded, *self._priced} - {config.score.name}
        costs = [COSTS.get(config.cost(name).type).quantity for name in sorted(named)]
        kinds: dict[bool, Kind] = {True: "cheap", False: "trained"}
        return names([config.score, *(dataclasses.replace(c, kind=kinds[c.name in self._priced]) for c in costs)])

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the function's name and options: kdnas cannot detect a change of the code itself."""
        record = json.dumps([self._name, self._options], sort_keys=True, default=str)
        return {"function": hashlib.sha256(record.encode()).hexdigest()[:16]}

    @property
    def description(self) -> dict[str, str]:
        """The function."""
        return {"function": self._name}

    def price(self, arch: Arch) -> dict[str, float]:
        """Return what the user's `price` returns."""
        return self._price_of(arch.choices)

    def facts(self) -> Findings:
        """Return what the study states."""
        return Findings(self._worst, DataDescription(self._name))

    def __call__(self, job: Job) -> Result:
        """Call the function."""
        began = time.perf_counter()
        amount = job.fidelity.training
        if amount["resolution_fraction"] == 1:
            del amount["resolution_fraction"]  # a function without it is not given it
        returned = _called(self._score, job.arch.choices, **amount, seed=job.init_seed % 2**32, **self._options)
        values = self.price(job.arch) | _numbers(returned, self._name)
        missing = [name for name in self.quantities if name not in values]
        if missing:
            raise TrialError(f"{self._name} did not return {', '.join(missing)}")
        values = {name: values[name] for name in self.quantities}
        refuse_unmeasurable(values)
        return Result(values, train_seconds=time.perf_counter() - began)

    def _price_of(self, choices: Mapping[str, Scalar]) -> dict[str, float]:
        return {} if self._price is None else _numbers(_called(self._price, dict(choices), **self._options), "price")


def _called(function: UserFunction, *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except UserCodeFailed as error:
        raise TrialError(str(error)) from error


def _numbers(returned: Any, name: str) -> dict[str, float]:
    if not isinstance(returned, Mapping):
        raise TrialError(f"{name} returned {type(returned).__name__}, not a mapping from quantities to numbers")
    try:
        return {str(key): float(value) for key, value in returned.items()}
    except (TypeError, ValueError) as error:
        raise TrialError(f"{name} returned something that is no number: {error}") from error
