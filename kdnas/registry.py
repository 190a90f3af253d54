"""One registry for every family: tasks, losses, students, teachers, data sets, costs, samplers, executors, exporters.

A member is one file in the family's package; the file's name is the member's name, and it registers one callable:

    @LOSSES.register
    class Cosine(DistillationLoss): ...        # kdnas/losses/cosine.py -> "cosine"

Positional parameters of that callable are run-time objects, keyword-only ones are its configuration, checked against
their annotations before anything is built. Only the file that is asked for is imported, so listing names is free. What
members share stands in the package's `__init__` (the contract) or in a file whose name starts with an underscore.

Others add members in two ways, which are held to the contract when they are asked for: `path/to/file.py:Name` in the
place of a name (`kdnas.plugins`), and the entry points of a distribution, in the group `kdnas.<family>`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Generic, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from kdnas.core.words import without_password
from kdnas.errors import ConfigError, KdnasError, Problem
from kdnas.plugins import SPELLING, is_plugin, load_plugin, short_name

T = TypeVar("T", bound=Callable[..., Any])


class Section(pydantic.BaseModel):
    """A section of a configuration file: frozen, unknown keys refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


def later(before: Any) -> Any:
    """Return the default of a setting that is younger than the first records, which is what held `before` it was one.

    As that it is left unsaid where its section is written: old hashes and records stay what they are.
    """
    return pydantic.Field(before, exclude_if=lambda value: bool(value == before))


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


Pattern = Annotated[str, pydantic.AfterValidator(_pattern)]
"""A regular expression."""


class Member(pydantic.BaseModel):
    """A registry member: its name and its options. A bare string is the name alone."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    type: str

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        """Return a bare name as the section that it is short for, anything else as it is."""
        return {"type": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return cls.spelled_out(value)

    @property
    def called(self) -> str:
        """Its name as users write it: of a plug-in without the folder that it was found in."""
        return short_name(self.type)

    @property
    def options(self) -> dict[str, Any]:
        """The member's own options."""
        return dict(self.model_extra or {})


class Registry(Generic[T]):
    """The members of one family, by name."""

    def __init__(self, family: str, package: str, *contract: type | str):
        """Make the registry of `package`, whose members are called `family` in messages.

        `contract` is what every member is: a class derived from one of these, or, where they are names, a function of
        so many run-time objects.
        """
        self.family = family
        self._package = package
        self._bases = tuple(item for item in contract if isinstance(item, type))
        self._objects = tuple(item for item in contract if isinstance(item, str))
        self._members: dict[str, T] = {}

    def register(self, member: T) -> T:
        """Register `member` under the name of the file that defines it. Use as a decorator."""
        self.add(member.__module__.rpartition(".")[2], member)
        return member

    def add(self, name: str, member: T) -> None:
        """Register `member` under `name`. Raises ValueError when the name is taken by another member."""
        taken = self._members.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (member.__module__, member.__qualname__):
            raise ValueError(f"{self.family} {name!r} is already registered by {taken.__module__}")
        self._members[name] = member
        self._christen(name, member)

    def names(self) -> list[str]:
        """Return every member's name, sorted, importing none; plug-ins that a study names are not among them."""
        package = importlib.import_module(self._package)
        files = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
        return sorted(files | set(self._entry_points()) | set(self._members))

    def missing(self, name: str) -> Problem | None:
        """Return that there is no member called `name`, with the nearest names; None where there may be one."""
        if is_plugin(name) or name in self._members or name in self.names():
            return None
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return Problem("", f"no {self.family} is called {name!r}{hint}", f"{', '.join(self.names())}, {SPELLING}")

    def get(self, name: str | T) -> T:
        """Return the member called `name`, or the one given. Raises ConfigError: there is none, or it is no member."""
        if not isinstance(name, str):
            return self._held(getattr(name, "__qualname__", repr(name)), name)
        if is_plugin(name):
            return self._held(name, load_plugin(name).value)
        if name not in self._members:
            missing = self.missing(name)
            if missing is not None:
                raise ConfigError(missing)
            entry = self._entry_points().get(name)
            if entry is not None:
                self.add(name, self._held(name, entry.load()))
            else:
                importlib.import_module(f"{self._package}.{name}")
        return self._members[name]

    def contract_problems(self, member: Any) -> list[str]:
        """Return why `member` is none of this family, in words; empty where it is one."""
        what = getattr(member, "__qualname__", repr(member))
        if self._bases:
            wanted = " or ".join(f"{base.__name__} ({base.__module__})" for base in self._bases)
            if not inspect.isclass(member):
                return [f"{what} is no class, and every {self.family} derives from {wanted}"]
            if not issubclass(member, self._bases):
                return [f"{what} is no {self.family}: it has to derive from {wanted}"]
            abstract = sorted(getattr(member, "__abstractmethods__", ()))
            lacking = [name for base in self._bases if issubclass(member, base) for name in _stated_by_members(base)]
            lacking = [name for name in lacking if not hasattr(member, name)]
            problems = [f"{what} leaves abstract: {', '.join(abstract)}"] if abstract else []
            return problems + ([f"{what} does not state: {', '.join(lacking)}"] if lacking else [])
        if not callable(member):
            return [f"{what} is of type {type(member).__name__}, and every {self.family} is a function"]
        problems = []
        if self._objects and not _takes(member, len(self._objects)):
            problems.append(f"{what} has to take {len(self._objects)} positional objects: {', '.join(self._objects)}")
        return problems

    def summary(self, name: str | T) -> str:
        """Return the first line of the member's docstring."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]

    def options(self, name: str | T) -> type[pydantic.BaseModel]:
        """Return the pydantic model of the member's keyword-only parameters (unknown keys are refused)."""
        return _options_model(self.get(name))

    def problems(self, name: str | T, options: Mapping[str, Any]) -> list[Problem]:
        """Return what is wrong with building `name` from `options`, all of it; `where` is the dotted option.

        Of a name that cannot be had it is `type`.
        """
        try:
            self.options(name).model_validate(dict(options))
        except ConfigError as error:
            return [Problem("type", problem.what, problem.allowed) for problem in error.problems]
        except pydantic.ValidationError as error:
            return validation_problems(error, self.options(name))
        return []

    def build(self, name: str | T, /, *objects: Any, **options: Any) -> Any:
        """Return the member built from run-time `objects` and validated `options`. Raises ConfigError."""
        member = self.get(name)
        model = _options_model(member)
        try:
            checked = model.model_validate(options)
        except pydantic.ValidationError as error:
            called = short_name(name) if isinstance(name, str) else name.__qualname__
            raise ConfigError(
                Problem(f"{self.family} {called}: {problem.where}", problem.what, problem.allowed)
                for problem in validation_problems(error, model)
            ) from error
        values = {field: getattr(checked, field) for field in checked.model_fields_set}
        if not isinstance(name, str) or not is_plugin(name):
            return member(*objects, **values)
        try:
            return member(*objects, **values)
        except KdnasError:
            raise
        except (Exception, SystemExit) as error:
            what = f"fails: {load_plugin(name).failure(error)}"
            raise ConfigError(Problem(f"{self.family} {short_name(name)}", what)) from error

    def _held(self, name: str, member: Any) -> Any:
        """Return `member`, which others wrote, held to the contract. Raises ConfigError with all that breaks it."""
        problems = self.contract_problems(member)
        if not problems:
            try:
                _options_model(member)
            except Exception as error:
                problems = [f"its options cannot be read: {type(error).__name__}: {error}"]
        if problems:
            raise ConfigError(Problem("", f"{short_name(name)}: {problem}") for problem in problems)
        self._christen(name, member)
        return member

    def _christen(self, name: str, member: Any) -> None:
        """Set the member's name, where its contract has it keep one."""
        if any("name" in inspect.get_annotations(base) for base in self._bases) and not member.__dict__.get("name"):
            member.name = name

    def _entry_points(self) -> dict[str, EntryPoint]:
        return _entry_points(f"kdnas.{self._package.rpartition('.')[2]}")


def validation_problems(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> list[Problem]:
    """Return pydantic's complaints as problems; an unknown key with the allowed ones."""
    problems = []
    wrong: dict[str, list[tuple[int, str, str]]] = {}  # how deep, what was given, what is allowed
    for item in error.errors(include_url=False):
        path = tuple(itertools.takewhile(lambda part: not _BRANCH.match(str(part)), item["loc"]))
        where = ".".join(str(part) for part in path)
        if item["type"] == "extra_forbidden":
            siblings = _sibling_keys(model, path)
            near = difflib.get_close_matches(str(path[-1]), siblings, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(Problem(where, f"unknown key{hint}", ", ".join(siblings)))
        elif item["type"] == "missing":
            problems.append(Problem(where, "is required"))
        else:
            wrong.setdefault(where, []).append(
                (len(item["loc"]), without_password(repr(item["input"]))[:80], _in_words(item))
            )
    for where, found in wrong.items():
        # Of several types that a value may have, the one whose inside is complained of is the one that is meant.
        deepest = max(depth for depth, _, _ in found)
        meant = [(given, rule) for depth, given, rule in found if depth == deepest]
        first, *others = dict.fromkeys(rule for _, rule in meant)
        words = " or ".join([first, *(other.removeprefix("must be ") for other in others)])
        problems.append(Problem(where, f"{words}, got {meant[0][0]}"))
    return problems


_BRANCH = re.compile(r"(constrained-)?(bool|float|int|str)$|(literal|tuple)\[")
"""What pydantic puts into a location for one of several types that a value may have."""

_RULES = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "string": "must be text",
    "tuple": "must be a list",
    "list": "must be a list",
    "dict": "must be a mapping (`key: value` lines)",
    "model": "must be a mapping (`key: value` lines)",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "too_short": "must be a list of at least {min_length} values",
    "too_long": "must be a list of at most {max_length} values",
}
"""What is allowed, by pydantic's type of error or the first word of it."""


def _in_words(item: ErrorDetails) -> str:
    """Return in plain words what is allowed where pydantic complains."""
    rule = _RULES.get(item["type"]) or _RULES.get(item["type"].partition("_")[0])
    if rule is not None:
        return rule.format(**item.get("ctx", {}))
    message = item["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def _sibling_keys(model: type[pydantic.BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the section holding `location` allows."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *typing.get_args(field.annotation)]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel)]
        if inner:
            model = inner[0]
    return sorted(model.model_fields)


def _stated_by_members(base: type) -> list[str]:
    """Return the class variables that `base` declares and leaves to its members."""
    declared = inspect.get_annotations(base).items()
    return [name for name, kind in declared if str(kind).startswith("ClassVar") and not hasattr(base, name)]


def _takes(member: Callable[..., Any], count: int) -> bool:
    """Return whether `member` can be called with so many positional objects."""
    kinds = inspect.Parameter
    parameters = inspect.signature(member).parameters.values()
    places = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    required = sum(place.default is kinds.empty for place in places)
    return required <= count and (count <= len(places) or any(p.kind is kinds.VAR_POSITIONAL for p in parameters))


@functools.cache
def _options_model(member: Callable[..., Any]) -> type[pydantic.BaseModel]:
    parameters = inspect.signature(member).parameters.values()
    function = member.__init__ if inspect.isclass(member) else member
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for parameter in parameters
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return pydantic.create_model(member.__name__, __config__=config, **fields)


@functools.cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}
