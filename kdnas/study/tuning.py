"""The recipes of a study's trainings: settings that it searches with the architecture, and what finalists get."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES
from kdnas.registry import Member, validation_problems
from kdnas.study.config import StudyConfig, TuneRange
from kdnas.training.recipe import Distillation, LossTerm, Recipe, with_training

_FIDELITY = ("training.epochs", "training.data_fraction", "training.resolution_fraction")


def tuned_recipe(recipe: Recipe, tuned: Mapping[str, float]) -> Recipe:
    """Return `recipe` with each dotted setting of `tuned` replaced, validated again.

    `distillation.losses.0.temperature` is the temperature of the first loss, and
    `training.augmentation.random_resized_crop.scale.0` the least area of a crop: a section that is off is switched on
    by a setting inside it. Raises ConfigError naming every setting that does not exist or does not take its value.
    """
    plain, section = recipe.model_dump(mode="json"), with_training(Recipe, type(recipe.training))
    problems = []
    for path, value in tuned.items():
        setting = _setting(recipe, path)
        if setting is None:
            problems.append(_unknown(recipe, path))
        elif not math.isfinite(value):
            problems.append(Problem(path, f"needs a finite number, got {value}"))
        else:
            setting.put(plain, value)
    if problems:
        raise ConfigError(problems)
    try:
        checked = section.model_validate(plain)
    except pydantic.ValidationError as error:
        raise ConfigError(validation_problems(error, section)) from error
    changed = Recipe(training=checked.training, distillation=checked.distillation)
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
    setting = _setting(recipe, path)
    if setting is None:
        unknown = _unknown(recipe, path)
        return [Problem(where, unknown.what, unknown.allowed)]
    if not setting.takes_numbers:
        return [Problem(where, "is not a setting that takes any real number, so it cannot be tuned")]
    problems = []
    for side in ("low", "high"):
        try:
            tuned_recipe(recipe, {path: getattr(bounds, side)})
        except ConfigError as error:
            problems += [Problem(f"{where}.{side}", problem.what, problem.allowed) for problem in error.problems]
    return problems


@dataclass(frozen=True)
class _Setting:
    """One setting of a recipe: the way to it, and what stands for each section of the way that is not there."""

    path: tuple[str, ...]
    annotation: Any
    usual: tuple[Any, ...]

    @property
    def takes_numbers(self) -> bool:
        """Whether any real number within bounds is a value of it."""
        return float in _plain_types(self.annotation)

    def put(self, plain: Any, value: float) -> None:
        """Write `value` into a recipe's plain data."""
        for part, usual in zip(self.path[:-1], self.usual, strict=True):
            key: Any = int(part) if isinstance(plain, list) else part
            if isinstance(plain, dict) and plain.get(key) is None:
                plain[key] = usual
            plain = plain[key]
        last: Any = int(self.path[-1]) if isinstance(plain, list) else self.path[-1]
        plain[last] = value


def _settings(recipe: Recipe) -> Iterator[_Setting]:
    """Yield every setting of `recipe`, those of sections that are off too."""
    yield from _inside(type(recipe.training), ("training",), ({},))
    for setting in _inside(Distillation, ("distillation",), ({},)):
        if setting.path[1] != "losses":
            yield setting
    for index, term in enumerate(recipe.distillation.losses):
        way = ("distillation", "losses", str(index))
        yield from _inside(LossTerm, way, ({}, [], {}))
        try:
            yield from _inside(LOSSES.options(term.type), way, ({}, [], {}))
        except ConfigError:  # an unknown loss is the distillation section's problem, and reported there
            continue


def _inside(model: type[pydantic.BaseModel], way: tuple[str, ...], usual: tuple[Any, ...]) -> Iterator[_Setting]:
    for name, field in model.model_fields.items():
        section, pair = _section(field.annotation), _pair(field.annotation)
        here = (*way, name)
        if section is not None and issubclass(section, Member):
            continue  # its options are known once it is named
        if section is not None:
            yield from _inside(section, here, (*usual, section().model_dump(mode="json")))
        elif pair is not None:
            stated = [None] * len(pair) if field.is_required() else list(field.get_default() or [None] * len(pair))
            for index, annotation in enumerate(pair):
                yield _Setting((*here, str(index)), annotation, (*usual, stated))
        else:
            yield _Setting(here, field.annotation, usual)


def _section(annotation: Any) -> type[pydantic.BaseModel] | None:
    """Return the section that a field holds, though it may also hold None; None where it holds a value."""
    parts = _of_union(annotation)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, pydantic.BaseModel)), None)


def _pair(annotation: Any) -> tuple[Any, ...] | None:
    """Return the types of the places of a list of fixed length; None for anything else."""
    for part in _of_union(annotation):
        places = typing.get_args(part)
        if typing.get_origin(part) is tuple and Ellipsis not in places:
            return places
    return None


def _of_union(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _setting(recipe: Recipe, path: str) -> _Setting | None:
    return next((setting for setting in _settings(recipe) if ".".join(setting.path) == path), None)


def _unknown(recipe: Recipe, path: str) -> Problem:
    """Return that `path` is no setting, with those of the section that it comes nearest to."""
    tunable = [".".join(setting.path) for setting in _settings(recipe) if setting.takes_numbers]
    tunable = [setting for setting in tunable if setting not in _FIDELITY]
    inside = [setting for setting in tunable if setting.startswith(f"{path}.")]
    if inside:
        return Problem(path, "is a section, not a setting of the recipe", ", ".join(inside))
    near = difflib.get_close_matches(path, tunable, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    above = path.rpartition(".")[0]
    while above and not any(setting.startswith(f"{above}.") for setting in tunable):
        above = above.rpartition(".")[0]
    siblings = [setting for setting in tunable if setting.startswith(f"{above}.")] if above else tunable
    return Problem(path, f"is no setting of the recipe{hint}", ", ".join(siblings))


def _plain_types(annotation: Any) -> set[Any]:
    """Return the types that an annotation allows, `Annotated`, unions and `| None` unwrapped."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain_types(typing.get_args(annotation)[0])
    inner = typing.get_args(annotation)
    return set().union(*(_plain_types(part) for part in inner)) if inner else {annotation}
