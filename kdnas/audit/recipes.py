"""The recipes of a comparison: one recipe with some of its settings varied, every combination of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES
from kdnas.registry import validation_problems
from kdnas.study.losses import loss_name, losses_spelled
from kdnas.study.tuning import LOSSES_KEY, of_some_losses, settings_named
from kdnas.study.yaml_lines import parse_value
from kdnas.training.recipe import Recipe, with_training

_BUDGET = ("training.epochs", "training.data_fraction", "training.resolution_fraction")
_OPEN, _CLOSED = "[{(", "]})"


@dataclass(frozen=True)
class Vary:
    """A setting and the values that it is to take, as they are spelled."""

    key: str
    values: tuple[str, ...]

    @property
    def where(self) -> str:
        """The setting on the command line."""
        return f"--vary {self.key}"


def parse_vary(text: str) -> Vary:
    """Return what `key=value,value,...` spells; commas in brackets part no values. Raises ConfigError."""
    key, separator, values = text.partition("=")
    parts = tuple(_split(values)) if separator else ()
    if not key.strip() or not parts or not all(parts):
        what = "is not key=value,value,..., such as distillation.losses=kd,dkd,dist"
        raise ConfigError(Problem(f"--vary {text}", what))
    key = key.strip()
    if key in _BUDGET:
        raise ConfigError(Problem(f"--vary {key}", "recipes are compared on one budget", "--epochs, --data-fraction"))
    if key.partition(".")[0] not in ("training", "distillation") or "." not in key:
        allowed = f"{LOSSES_KEY}, distillation.task_weight, distillation.temperature, training.learning_rate, ..."
        raise ConfigError(Problem(f"--vary {key}", "is no setting of a recipe", allowed))
    return Vary(key, parts)


def varied(base: Recipe, varies: Sequence[Vary]) -> dict[str, Recipe]:
    """Return the recipes by what they are called: every combination, each recipe once.

    Settings of losses that a recipe's losses have not, such as the temperature of hint, leave it as it is. Raises
    ConfigError with every problem: settings and values that there are not, and what no recipe has.
    """
    ordered = sorted(varies, key=lambda vary: vary.key != LOSSES_KEY)
    doubled = {vary.key for vary in ordered if sum(vary.key == other.key for other in ordered) > 1}
    if doubled:
        raise ConfigError(Problem(f"--vary {key}", "is varied twice: its values belong together") for key in doubled)
    recipes: dict[str, Recipe] = {}
    problems: dict[str, Problem] = {}
    used: set[str] = set()
    for values in itertools.product(*(vary.values for vary in ordered)):
        recipe, names = base, []
        try:
            for vary, value in zip(ordered, values, strict=True):
                changed, name = _with(recipe, vary, value)
                if name:
                    used.add(vary.key)
                    names.append(name)
                recipe = changed
        except ConfigError as error:
            problems |= {str(problem): problem for problem in error.problems}
            continue
        if recipe not in recipes.values():
            recipes[" ".join(names) or loss_name(base.distillation)] = recipe
    if not problems:
        for vary in ordered:
            if vary.key not in used:
                problems[vary.key] = Problem(vary.where, "no loss of these recipes has such an option")
    if problems:
        raise ConfigError(problems.values())
    return recipes


def _with(recipe: Recipe, vary: Vary, value: str) -> tuple[Recipe, str]:
    """Return the recipe with one setting changed, and in words how; no words where it has no such setting."""
    key = vary.key
    if key == LOSSES_KEY:
        try:
            name, distillation = losses_spelled(value, recipe.distillation)
        except ConfigError as error:
            raise ConfigError(Problem(vary.where, each.what, each.allowed) for each in error.problems) from None
        return recipe.model_copy(update={"distillation": distillation}), name
    plain, last = recipe.model_dump(mode="json"), key.rpartition(".")[2]
    if of_some_losses(key):
        having = settings_named(recipe, key)
        for setting in having:
            setting.put(plain, parse_value(value))
        return (_checked(recipe, plain, vary), f"{last}={value}") if having else (recipe, "")
    _put(plain, vary, parse_value(value))
    return _checked(recipe, plain, vary), f"{last}={value}"


def _put(plain: dict[str, Any], vary: Vary, value: Any) -> None:
    """Put `value` at a dotted place, where there is one. Raises ConfigError."""
    *path, last = vary.key.split(".")
    at: Any = plain
    try:
        for step in path:
            at = at[int(step)] if isinstance(at, list) else at[step]
        at[int(last) if isinstance(at, list) else last] = value
    except (KeyError, IndexError, ValueError, TypeError):
        raise ConfigError(Problem(vary.where, "is no setting of the recipe")) from None


def _checked(recipe: Recipe, plain: Mapping[str, Any], vary: Vary) -> Recipe:
    """Return the recipe that `plain` spells. Raises ConfigError where it is none."""
    section = with_training(Recipe, type(recipe.training))
    try:
        found = section.model_validate(plain)
    except pydantic.ValidationError as error:
        problems = [
            Problem(vary.where, f"{problem.where}: {problem.what}", problem.allowed)
            for problem in validation_problems(error, section)
        ]
        raise ConfigError(problems) from None
    wrong = [
        Problem(vary.where, f"{problem.where} of {term.type}: {problem.what}", problem.allowed)
        for term in found.distillation.losses
        for problem in LOSSES.problems(term.type, term.options)
    ]
    if wrong:
        raise ConfigError(wrong)
    return Recipe(training=found.training, distillation=found.distillation)


def _split(text: str) -> list[str]:
    """Return the values of a list whose commas outside of brackets part them."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in _OPEN) - (letter in _CLOSED)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def canonical(recipe: Recipe) -> str:
    """Return the recipe as JSON: equal recipes are equal texts."""
    return json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
