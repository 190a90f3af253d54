"""The recipes of a study's trainings: settings that it searches with the architecture, and what finalists get."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from kdnas.core.arch import Arch, Scalar
from kdnas.errors import ConfigError, Problem
from kdnas.losses import LOSSES
from kdnas.plugins import short_name
from kdnas.registry import Member, validation_problems
from kdnas.study.config import StudyConfig
from kdnas.study.losses import losses_spelled, stated_of
from kdnas.study.teachers import teacher_problems
from kdnas.study.tune import Tuned, TuneRange
from kdnas.training.recipe import FRONT, NUMERICS, Distillation, LossTerm, Peer, Recipe, with_training

LOSSES_KEY = "distillation.losses"
"""The losses as one setting: each value is a loss, or several joined by `+` (`kdnas.study.losses`)."""
_FIDELITY = ("training.epochs", "training.data_fraction", "training.resolution_fraction")
_WHOLE_SUM = {*Distillation.model_fields} - {"losses"}
_TEACHERS = ("teacher", "further_teachers")
"""Where it stands that no loss learns of one of them: another choice of losses may."""
_ONCE_A_RUN = (*(f"training.{name}" for name in NUMERICS), "distillation.teacher_top_k", "distillation.teacher_draws")


class Tuning:
    """What a study searches of its recipe with the architecture, and which of it goes with which losses."""

    def __init__(self, config: StudyConfig):
        self._tune = config.tune
        self._without: dict[Scalar | None, frozenset[str]] = {
            losses: frozenset(path for path in config.tune if of_some_losses(path) and not settings_named(recipe, path))
            for losses, recipe in _alternatives(config).items()
        }
        """By the losses chosen: the settings that those do not have."""

    def of(self, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return the tuned settings among `values`: two proposals of the same training have the same."""
        without = self._without[values.get(LOSSES_KEY)]
        return {
            path: float(values[path]) if isinstance(bounds, TuneRange) else values[path]
            for path, bounds in self._tune.items()
            if path not in without
        }

    def stated(self, values: Mapping[str, Scalar]) -> dict[str, Scalar] | None:
        """Return the tuned settings among `values`, None where these leave some open."""
        without = self._without.get(values.get(LOSSES_KEY))
        return self.of(values) if without is not None and self._tune.keys() - without <= values.keys() else None


def tuned_recipe(recipe: Recipe, tuned: Mapping[str, Scalar]) -> Recipe:
    """Return `recipe` with each dotted setting of `tuned` replaced, validated again.

    `distillation.losses` are all losses, `distillation.temperature` the temperature of each that has one,
    `distillation.losses.kd.temperature` that of kd, `distillation.losses.0.temperature` that of the first loss, and
    `training.augmentation.random_resized_crop.scale.0` the least area of a crop: a section that is off is switched on
    by a setting inside it. Raises ConfigError naming every setting that does not exist or does not take its value.
    """
    if LOSSES_KEY in tuned:
        recipe = _with_losses(recipe, tuned[LOSSES_KEY])
    plain, section = recipe.model_dump(mode="json"), with_training(Recipe, type(recipe.training))
    problems, touched = [], set()
    for path, value in tuned.items():
        if path == LOSSES_KEY:
            continue
        settings = settings_named(recipe, path)
        if not settings:
            problems.append(_unknown([recipe], path))
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(Problem(path, f"needs a finite number, got {value}"))
        else:
            for setting in settings:
                setting.put(plain, value)
                touched.add(setting.loss)
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
        if str(index) in touched
        for problem in LOSSES.problems(term.type, term.options)
    ]
    if problems:
        raise ConfigError(problems)
    return changed


def final_recipe(config: StudyConfig, tuned: Mapping[str, Scalar], others: Iterable[Arch] = ()) -> Recipe:
    """Return the recipe by which a finalist is trained: the final epochs and data, at the full resolution.

    `others` are those that learn with it where that is the front; without any it is one of its kind.
    """
    recipe = tuned_recipe(config.recipe, tuned)
    training = recipe.training.model_copy(update=config.final_fidelity.training)
    distillation = config.final.distillation or recipe.distillation
    if distillation.peers == FRONT:
        peers = tuple(Peer(family=arch.family, choices=dict(arch.choices)) for arch in others)
        distillation = distillation.model_copy(update={"peers": peers or None})
    return recipe.model_copy(update={"training": training, "distillation": distillation})


def recipes_to_try(config: StudyConfig) -> dict[tuple[str, Scalar], Recipe]:
    """Return the recipes by whose losses students are trained, by the key of the study and its value.

    The key of the study's own losses is empty: problems have theirs.
    """
    alternatives = _alternatives(config)
    found = {
        ("", "") if losses is None else (f"tune.{LOSSES_KEY}", losses): one for losses, one in alternatives.items()
    }
    if config.shares_weights:
        found["", ""] = config.recipe
    if config.final.distillation is not None:
        found["final", ""] = config.recipe.model_copy(update={"distillation": config.final.distillation})
    return found


def _alternatives(config: StudyConfig) -> dict[Scalar | None, Recipe]:
    """Return the recipe of each choice of losses; of None the study's, where they are not tuned."""
    choice = config.tune.get(LOSSES_KEY)
    if choice is None or isinstance(choice, TuneRange):
        return {None: config.recipe}
    return {losses: _with_losses(config.recipe, losses) for losses in choice}


def _with_losses(recipe: Recipe, text: Scalar) -> Recipe:
    try:
        _, distillation = losses_spelled(str(text), recipe.distillation)
    except ConfigError as error:
        raise ConfigError(
            Problem(LOSSES_KEY, f"{text}: {problem.what}", problem.allowed) for problem in error.problems
        ) from None
    return recipe.model_copy(update={"distillation": distillation})


def tunable_problems(config: StudyConfig) -> list[Problem]:
    """Return what is wrong with the `tune` section: settings that there are not, and values that one does not take."""
    where, choice = f"tune.{LOSSES_KEY}", config.tune.get(LOSSES_KEY)
    if isinstance(choice, TuneRange):
        return [Problem(where, "has no order: state which losses there are", "[kd, dkd, {type: hint, task_weight: 1}]")]
    problems, recipes = [], {}
    for losses in choice or [None]:
        try:
            recipes[losses] = config.recipe if losses is None else _with_losses(config.recipe, losses)
        except ConfigError as error:
            problems += [Problem(where, problem.what, problem.allowed) for problem in error.problems]
        else:
            problems += [] if losses is None else _taught_wrong(config, recipes[losses], where, losses)
    problems += _said_twice(config, recipes)
    if problems:
        return problems
    return [
        problem
        for path, bounds in config.tune.items()
        if path != LOSSES_KEY
        for problem in _setting_problems(config, path, bounds, recipes)
    ]


def _said_twice(config: StudyConfig, recipes: Mapping[Scalar | None, Recipe]) -> list[Problem]:
    """Return which choices of losses are the same, and which state what is tuned of them too."""
    problems: list[Problem] = []
    known: dict[str, Scalar] = {}
    for losses, recipe in recipes.items():
        if losses is None:
            continue
        terms = sorted(term.model_dump_json() for term in recipe.distillation.losses)
        what = f"{terms} {recipe.distillation.model_dump_json(exclude={'losses'})}"
        if (first := known.setdefault(what, losses)) != losses:
            problems.append(Problem(f"tune.{LOSSES_KEY}", f"{first} and {losses} are the same losses"))
        stated = stated_of(str(losses))
        for name in stated:
            for path in (f"distillation.{name}", f"{LOSSES_KEY}.{stated.get('type')}.{name}"):
                if path in config.tune:
                    problems.append(Problem(f"tune.{path}", f"is stated by the losses {losses} too", "one of the two"))
    return problems


def _setting_problems(
    config: StudyConfig, path: str, bounds: Tuned, recipes: Mapping[Scalar | None, Recipe]
) -> list[Problem]:
    where = f"tune.{path}"
    if path in _FIDELITY:
        return [Problem(where, "decides how much training a score has seen and is the same for every trial")]
    if path in _ONCE_A_RUN:
        return [Problem(where, "is decided once for the whole run")]
    having = {losses: recipe for losses, recipe in recipes.items() if settings_named(recipe, path)}
    if not having:
        unknown = _unknown(list(recipes.values()), path)
        return [Problem(where, unknown.what, unknown.allowed)]
    if isinstance(bounds, TuneRange):
        if not all(setting.takes_numbers for recipe in having.values() for setting in settings_named(recipe, path)):
            what = "is not a setting that takes any real number: state which values there are"
            return [Problem(where, what, "a list of two or more values")]
        tries: dict[str, Scalar] = {f"{where}.{side}": getattr(bounds, side) for side in ("low", "high")}
    else:
        tries = {f"{where}.{place}": value for place, value in enumerate(bounds)}
    differs = of_some_losses(path)
    tried = list(having.items())[: None if differs else 1]
    problems: list[Problem] = []
    for at, value in tries.items():
        for losses, recipe in tried:
            of = f" with the losses {losses}" if differs and losses is not None else ""
            if found := _value_problems(config, recipe, path, value, at, of):
                problems += found
                break  # what others say of the same value is much the same
    return problems


def _value_problems(
    config: StudyConfig, recipe: Recipe, path: str, value: Scalar, where: str, of: str
) -> list[Problem]:
    try:
        changed = tuned_recipe(recipe, {path: value})
    except ConfigError as error:
        return [Problem(where, f"{problem.what}{of}", problem.allowed) for problem in error.problems]
    return _taught_wrong(config, changed, where, value) if path.startswith("distillation.") else []


def _taught_wrong(config: StudyConfig, recipe: Recipe, where: str, value: Scalar) -> list[Problem]:
    """Return why nobody teaches what these losses ask for, beyond what is wrong with the study's own."""
    before = {problem.what for problem in teacher_problems(config)}
    found = teacher_problems(config.model_copy(update={"distillation": recipe.distillation}))
    return [
        Problem(where, f"{value}: {problem.what}", problem.allowed)
        for problem in found
        if problem.what not in before and not problem.where.startswith(_TEACHERS)
    ]


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

    @property
    def loss(self) -> str | None:
        """The place of the loss whose setting it is, None where it is none's."""
        return self.path[2] if self.path[:2] == ("distillation", "losses") else None

    def put(self, plain: Any, value: Any) -> None:
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


def of_some_losses(path: str) -> bool:
    """Whether `path` names a setting of losses, which other losses may not have."""
    section, _, rest = path.partition(".")
    return section == "distillation" and path != LOSSES_KEY and rest.partition(".")[0] not in _WHOLE_SUM


def settings_named(recipe: Recipe, path: str) -> list[_Setting]:
    """Return the settings that a dotted path names: of losses those of each one that has it, none where none has."""
    found = []
    for setting in _settings(recipe):
        names = [".".join(setting.path)]
        if setting.loss is not None and setting.path[3:] != ("type",):
            kind, option = recipe.distillation.losses[int(setting.loss)].type, ".".join(setting.path[3:])
            names += [f"{LOSSES_KEY}.{short_name(kind)}.{option}"]
            names += [f"distillation.{option}"] if option.partition(".")[0] not in Distillation.model_fields else []
        if path in names:
            found.append(setting)
    return found


def _unknown(recipes: Sequence[Recipe], path: str) -> Problem:
    """Return that `path` is no setting, with those of the section that it comes nearest to."""
    known = [setting for recipe in recipes for setting in _settings(recipe) if setting.takes_numbers]
    tunable = [name for name in dict.fromkeys(".".join(setting.path) for setting in known) if name not in _FIDELITY]
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
