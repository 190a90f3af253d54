"""The recipes of a study's trainings: settings that it searches with the architecture, and what finalists get."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from typing import Any

import pydantic

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES
from kdnas.registry import validation_problems
from kdnas.study.config import StudyConfig, TuneRange
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training

_FIDELITY = ("training.epochs", "training.data_fraction", "training.resolution_fraction")
_EXAMPLES = "training.learning_rate, distillation.task_weight, distillation.losses.0.temperature, ..."


def tuned_recipe(recipe: Recipe, tuned: Mapping[str, float]) -> Recipe:
    """Return `recipe` with each dotted setting of `tuned` replaced, validated again.

    `distillation.losses.0.temperature` is the temperature of the first loss. Raises ConfigError naming every setting
    that does not exist or does not take its value.
    """
    plain = recipe.model_dump(mode="json")
    problems = []
    for path, value in tuned.items():
        if _annotation(recipe, path) is None:
            problems.append(_unknown(path))
        elif not math.isfinite(value):
            problems.append(Problem(path, f"needs a finite number, got {value}"))
        else:
            _put(plain, path.split("."), value)
    if problems:
        raise ConfigError(problems)
    try:
        changed = Recipe.model_validate(plain)
    except pydantic.ValidationError as error:
        raise ConfigError(validation_problems(error, Recipe)) from error
    problems = [
        Problem(f"distillation.losses.{index}.{problem.where}", problem.what, problem.allowed)
        for index, term in enumerate(changed.distillation.losses)
        if any(path.startswith(f"distillation.losses.{index}.") for path in tuned)
        for problem in LOSSES.problems(term.type, term.options)
    ]
    if problems:
        raise ConfigError(problems)
    return changed


def final_recipe(config: StudyConfig, tuned: Mapping[str, float]) -> Recipe:
    """Return the recipe by which a finalist is trained: the final epochs and data, at the full resolution."""
    recipe = tuned_recipe(config.recipe, tuned)
    training = recipe.training.model_copy(update=config.final_fidelity.training)
    return recipe.model_copy(update={"training": training})


def tunable_problems(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with the `tune` section: unknown settings, ones that are not real numbers, bad ranges."""
    return [problem for path, bounds in config.tune.items() for problem in _range_problems(config.recipe, path, bounds)]


def _range_problems(recipe: Recipe, path: str, bounds: TuneRange) -> list[Problem]:
    where = f"tune.{path}"
    if path in _FIDELITY:
        return [Problem(where, "decides how much training a score has seen and is the same for every trial")]
    annotation = _annotation(recipe, path)
    if annotation is None:
        unknown = _unknown(path)
        return [Problem(where, unknown.what, unknown.allowed)]
    if float not in _plain_types(annotation):
        return [Problem(where, "is not a setting that takes any real number, so it cannot be tuned")]
    problems = []
    for side in ("low", "high"):
        try:
            tuned_recipe(recipe, {path: getattr(bounds, side)})
        except ConfigError as error:
            problems += [Problem(f"{where}.{side}", problem.what, problem.allowed) for problem in error.problems]
    return problems


def _unknown(path: str) -> Problem:
    return Problem(path, "is no setting of the recipe", _EXAMPLES)


def _annotation(recipe: Recipe, path: str) -> Any | None:
    """Return the type of the setting that `path` names, None where there is none."""
    section, _, rest = path.partition(".")
    if section == "training":
        return _field(Training, rest.split("."))
    if section != "distillation":
        return None
    name, *deeper = rest.split(".")
    if name != "losses":
        return _field(Distillation, [name, *deeper])
    if len(deeper) != 2 or not deeper[0].isdecimal() or int(deeper[0]) >= len(recipe.distillation.losses):
        return None
    term = recipe.distillation.losses[int(deeper[0])]
    if deeper[1] in LossTerm.model_fields:
        return _field(LossTerm, deeper[1:])
    try:
        return _field(LOSSES.options(term.type), deeper[1:])
    except ConfigError:  # an unknown loss is the distillation section's problem, and told there
        return None


def _field(model: type[pydantic.BaseModel], parts: list[str]) -> Any | None:
    """Return the annotation of the field that `parts` leads to, None where it is missing or itself a section."""
    field = model.model_fields.get(parts[0])
    if field is None:
        return None
    inner = isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel)
    if inner:
        return _field(typing.cast(type[pydantic.BaseModel], field.annotation), parts[1:]) if parts[1:] else None
    return field.annotation if len(parts) == 1 else None


def _plain_types(annotation: Any) -> set[Any]:
    """Return the types that an annotation allows, `Annotated`, unions and `| None` unwrapped."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain_types(typing.get_args(annotation)[0])
    inner = typing.get_args(annotation)
    return set().union(*(_plain_types(part) for part in inner)) if inner else {annotation}


def _put(section: Any, parts: list[str], value: float) -> None:
    for part in parts[:-1]:
        section = section[int(part)] if isinstance(section, list) else section[part]
    section[parts[-1]] = value
