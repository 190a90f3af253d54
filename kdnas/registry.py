"""One registry for every family: losses, students, teachers, data sets, costs, samplers, executors, exporters.

A member is one file in the family's package; the file's name is the member's name, and it registers one callable:

    @LOSSES.register
    class Cosine(DistillationLoss): ...        # kdnas/losses/cosine.py -> "cosine"

Positional parameters of that callable are run-time objects, keyword-only ones are its configuration, checked against
their annotations before anything is built. Other distributions add members through entry points of the group
`kdnas.<family>`. Only the file that is asked for is imported, so listing names is free. What members
share stands in the package's `__init__` (the contract) or in a file whose name starts with an underscore.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

import pydantic

from kdnas.errors import ConfigError, Problem

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """The members of one family, by name."""

    def __init__(self, family: str, package: str):
        self.family = family
        self._package = package
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

    def names(self) -> list[str]:
        """Return every member's name, sorted, importing none."""
        package = importlib.import_module(self._package)
        files = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
        return sorted(files | set(self._entry_points()) | set(self._members))

    def get(self, name: str) -> T:
        """Return the member called `name`. Raises ConfigError naming the nearest names."""
        if name not in self._members:
            if name not in self.names():
                near = difflib.get_close_matches(name, self.names(), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(Problem("", f"no {self.family} is called {name!r}{hint}", ", ".join(self.names())))
            entry = self._entry_points().get(name)
            if entry is not None:
                self.add(name, entry.load())
            else:
                importlib.import_module(f"{self._package}.{name}")
        return self._members[name]

    def summary(self, name: str) -> str:
        """Return the first line of the member's docstring."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]

    def options(self, name: str) -> type[pydantic.BaseModel]:
        """Return the pydantic model of the member's keyword-only parameters (unknown keys are refused)."""
        return _options_model(self.get(name))

    def problems(self, name: str, options: Mapping[str, Any]) -> list[Problem]:
        """Return what is wrong with building `name` from `options`, all of it; `where` is the dotted option."""
        try:
            self.options(name).model_validate(dict(options))
        except ConfigError as error:
            return [Problem("type", problem.what, problem.allowed) for problem in error.problems]
        except pydantic.ValidationError as error:
            return validation_problems(error, self.options(name))
        return []

    def build(self, name: str, /, *objects: Any, **options: Any) -> Any:
        """Return the member built from run-time `objects` and validated `options`. Raises ConfigError."""
        member = self.get(name)
        problems = self.problems(name, options)
        if problems:
            raise ConfigError(
                Problem(f"{self.family} {name}: {problem.where}", problem.what, problem.allowed) for problem in problems
            )
        checked = self.options(name).model_validate(options)
        values = {field: getattr(checked, field) for field in checked.model_fields_set}
        return member(*objects, **values)

    def _entry_points(self) -> dict[str, Any]:
        return _entry_points(f"kdnas.{self._package.rpartition('.')[2]}")


def validation_problems(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> list[Problem]:
    """Return pydantic's complaints as problems; an unknown key is told the allowed ones."""
    problems = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            siblings = _keys_beside(model, item["loc"])
            near = difflib.get_close_matches(str(item["loc"][-1]), siblings, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(Problem(where, f"unknown key{hint}", ", ".join(siblings)))
        elif item["type"] == "missing":
            problems.append(Problem(where, "is required"))
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = repr(item["input"])
            problems.append(Problem(where, f"{message[:1].lower()}{message[1:]}, got {shown[:80]}"))
    return problems


def _keys_beside(model: type[pydantic.BaseModel], location: tuple[int | str, ...]) -> list[str]:
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
def _entry_points(group: str) -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=group)}
