"""Search spaces as YAML: finding, reading and checking them.

A space file has these keys. `name`, `description`, `conditions` and `fixed` may be left out, and so may `family` where
a table or a function of your own scores the students:

    name: my_space                                       # the file's name without .yaml
    family: resnet
    description: One line for `kdnas spaces list`.
    choices:
      stem_width: [16, 24, 32]                           # a list of values
      stage2.depth: {low: 0, high: 3, step: 1}           # or evenly spaced whole numbers, step 1 by default
      stage2.width: {low: 16, high: 64, step: 16}
    conditions:
      - {choice: stage2.width, when: stage2.depth, in: [1, 2, 3]}
      - {choice: stage2.*, when: stage2.depth, in: {low: 1, high: 3}}     # every other choice called stage2.something
    fixed:
      stage2.stride: 1                                   # never searched
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.resources
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from graphlib import CycleError
from pathlib import Path
from typing import Any

import numpy as np

from kdnas.core.arch import Arch, Scalar, normalise_scalar
from kdnas.core.space import Choice, Condition, SearchSpace, in_order
from kdnas.errors import ConfigError, Problem
from kdnas.plugins import adopted
from kdnas.students import STUDENTS, StudentFamily, stated_arch
from kdnas.study.config import DERIVED
from kdnas.study.yaml_lines import YamlDocument, read_yaml

_KEYS = ("name", "family", "description", "choices", "conditions", "fixed")
_MAX_VALUES = 10_000
_TRIED_ASSIGNMENTS = 64


def space_names() -> list[str]:
    """Return the names of the spaces that kdnas carries, sorted."""
    return sorted(path.stem for path in _carried_folder().glob("*.yaml"))


def space_path(name: str) -> Path:
    """Return the file of the space that kdnas carries under `name`."""
    return _carried_folder() / f"{name}.yaml"


def load_space(name_or_path: str, folder: Path) -> SearchSpace:
    """Return the space that kdnas carries under this name, or that of a YAML file, its path relative to `folder`.

    Raises ConfigError with every problem and its line, also where the family cannot build what the space describes.
    """
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path or "\\" in name_or_path:
        return read_space(folder / Path(name_or_path).expanduser())
    names = space_names()
    if name_or_path not in names:
        near = difflib.get_close_matches(name_or_path, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            Problem(
                "",
                f"no search space is called {name_or_path!r}{hint}",
                f"{', '.join(names)}, or a path to a .yaml file",
            )
        )
    return read_space(space_path(name_or_path))


def derived_space(section: Mapping[str, Any], teachers: Collection[str]) -> tuple[SearchSpace, list[Problem]]:
    """Return the space of students cut out of a teacher, whose choices only the open teacher shows, and what is wrong.

    `section` holds the options of the family `derived`, next to `derive`, one of the names of the `teachers`.
    """
    options = {name: value for name, value in section.items() if name != "derive"}
    derive = section.get("derive")
    wrong = "is required" if derive is None else f"there is no teacher called {derive!r}"
    problems = [] if derive in teachers else [Problem("space.derive", wrong, ", ".join(teachers))]
    problems += [
        Problem(f"space.{problem.where}", problem.what, problem.allowed)
        for problem in STUDENTS.problems(DERIVED, options)
    ]
    return SearchSpace(DERIVED, DERIVED, (), options=options), problems


def read_space(path: Path) -> SearchSpace:
    """Return the space in the YAML file at `path`. Raises ConfigError with every problem and its line."""
    document = read_yaml(path)
    return space_of(replace(document, data=adopted(document.data, path.parent)), path.stem)


def space_of(document: YamlDocument, default_name: str) -> SearchSpace:
    """Return the space that `document` spells. Raises ConfigError with every problem and its line."""
    reader = _SpaceReader(document.data)
    space = reader.space(default_name)
    problems = list(reader.problems)
    # A mistake elsewhere than in the name or in some value of a choice would make the family complain of sound lines.
    harmless = ("name", "description", *(f"choices.{choice.name}" for choice in space.choices if choice.values))
    if all(problem.where in harmless for problem in problems):
        problems += _building_problems(space)
    if problems:
        raise ConfigError(document.in_order(problems))
    return space


def arch_of(space: SearchSpace, assignment: Mapping[str, Scalar], family: StudentFamily | None = None) -> Arch:
    """Return the arch that `assignment` stands for, inactive choices dropped. Raises ConfigError where it is none.

    `family` is the space's own where it is open. In a space that names none every combination of active choices is an
    arch, named after the space.
    """
    active = space.active(assignment)
    if family is not None:
        return family.canonical(active)
    return stated_arch(space.family, active) if space.family else Arch.of(space.name, active)


def _carried_folder() -> Path:
    """Return the folder of the carried spaces: inside the installed package, next to it in a source checkout."""
    package = Path(str(importlib.resources.files("kdnas")))
    packaged = package / "search_spaces"
    return packaged if packaged.is_dir() else package.parent / "search_spaces"


class _SpaceReader:
    """Turns plain YAML data into a space, collecting problems whose `where` is the dotted key."""

    def __init__(self, data: dict[str, Any]):
        self._data = data
        self.problems: list[Problem] = []

    def space(self, default_name: str) -> SearchSpace:
        """Return the space, what is wrong left out of it; `problems` lists that."""
        for key in self._data:
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                self._complain(key, f"unknown key{hint}", ", ".join(_KEYS))
        name = self._text("name", default_name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            self._complain("name", f"{name!r} is no name", "letters, digits, '.', '_' and '-'")
        family = self._text("family", "")
        for problem in STUDENTS.problems(family, {}) if family else ():
            if problem.where == "type":
                self._complain("family", problem.what, problem.allowed)
        if family in STUDENTS.names() and STUDENTS.get(family).derived:
            message = f"{family}: its choices are the teacher's, which a study states by `space: {{derive: teacher}}`"
            self._complain("family", message)
        choices = self._choices()
        fixed = self._fixed(choices)
        domains = {**choices, **{name: (value,) for name, value in fixed.items()}}
        conditions = self._conditions(domains)
        return SearchSpace(
            name=name,
            family=family,
            choices=tuple(Choice(name, values) for name, values in choices.items()),
            conditions=conditions,
            fixed=fixed,
            description=self._text("description", ""),
        )

    def _complain(self, where: str, what: str, allowed: str = "") -> None:
        self.problems.append(Problem(where, what, allowed))

    def _text(self, key: str, default: str) -> str:
        value = self._data.get(key, default)
        if isinstance(value, str):
            return " ".join(value.split())
        self._complain(key, f"must be text, got {value!r}")
        return default

    def _section(self, key: str) -> dict[str, Any]:
        value = self._data.get(key, {})
        if isinstance(value, dict):
            return value
        self._complain(key, f"must be a mapping (`key: value` lines), got {value!r}")
        return {}

    def _choices(self) -> dict[str, tuple[Scalar, ...]]:
        section = self._section("choices")
        if not section and not any(problem.where == "choices" for problem in self.problems):
            self._complain("choices", "at least one choice is required")
        return {name: self._domain(f"choices.{name}", value) for name, value in section.items()}

    def _fixed(self, choices: Mapping[str, tuple[Scalar, ...]]) -> dict[str, Scalar]:
        fixed: dict[str, Scalar] = {}
        for name, value in self._section("fixed").items():
            if name in choices:
                self._complain(f"fixed.{name}", "is a choice as well: it can be fixed or searched, not both")
            elif not isinstance(value, bool | int | float | str):
                self._complain(f"fixed.{name}", f"must be one value, got {value!r}")
            else:
                fixed[name] = normalise_scalar(value)
        return fixed

    def _domain(self, where: str, value: Any) -> tuple[Scalar, ...]:
        """Return the values of a list or of {low, high, step}."""
        if isinstance(value, dict):
            return self._range(where, value)
        if not isinstance(value, list):
            hint = "; a value that is not searched stands under `fixed:`" if where.startswith("choices.") else ""
            self._complain(where, f"must be a list of values or {{low, high, step}}, got {value!r}{hint}")
            return ()
        if not value:
            self._complain(where, "has no values")
        values: dict[tuple[type, Scalar], Scalar] = {}
        for item in value:
            if not isinstance(item, bool | int | float | str):
                self._complain(where, f"a value must be a number, text, true or false, got {item!r}")
                continue
            item = normalise_scalar(item)
            if (type(item), item) in values:
                self._complain(where, f"the value {item!r} stands twice")
            values[type(item), item] = item
        return tuple(values.values())

    def _range(self, where: str, value: dict[str, Any]) -> tuple[Scalar, ...]:
        before = len(self.problems)
        for key in value.keys() - {"low", "high", "step"}:
            self._complain(f"{where}.{key}", "unknown key", "low, high, step")
        bounds = {"step": 1, **value}
        for key in ("low", "high", "step"):
            if key not in bounds:
                self._complain(f"{where}.{key}", "is required")
            elif type(bounds[key]) is not int:
                self._complain(f"{where}.{key}", f"must be a whole number, got {bounds[key]!r}")
        if len(self.problems) > before:
            return ()
        low, high, step = bounds["low"], bounds["high"], bounds["step"]
        if low > high:
            self._complain(where, f"low {low} is above high {high}")
        elif step < 1:
            self._complain(f"{where}.step", f"must be at least 1, got {step}")
        elif (high - low) % step:
            self._complain(where, f"high {high} is not reached from low {low} in steps of {step}")
        elif (high - low) // step >= _MAX_VALUES:
            self._complain(where, f"has more than {_MAX_VALUES} values")
        else:
            return tuple(range(low, high + 1, step))
        return ()

    def _conditions(self, domains: Mapping[str, tuple[Scalar, ...]]) -> tuple[Condition, ...]:
        entries = self._data.get("conditions", [])
        if not isinstance(entries, list):
            self._complain("conditions", f"must be a list, got {entries!r}")
            return ()
        conditions: list[Condition] = []
        for index, entry in enumerate(entries):
            conditions += self._condition(f"conditions.{index}", entry, domains)
        try:
            in_order(conditions)
        except CycleError as error:
            self._complain("conditions", f"go in a circle: {' -> '.join(reversed(error.args[1]))}")
        return tuple(conditions)

    def _condition(self, where: str, entry: Any, domains: Mapping[str, tuple[Scalar, ...]]) -> list[Condition]:
        if not isinstance(entry, dict) or set(entry) != {"choice", "when", "in"}:
            self._complain(where, f"must be {{choice: NAME, when: NAME, in: [VALUES]}}, got {entry!r}")
            return []
        before = len(self.problems)
        pattern, when = entry["choice"], entry["when"]
        if not isinstance(when, str) or when not in domains:
            self._complain(f"{where}.when", f"there is no choice {when!r}", ", ".join(domains))
        names = [
            name for name in domains if fnmatch.fnmatchcase(name, str(pattern)) and (name != when or name == pattern)
        ]
        if not names:
            self._complain(f"{where}.choice", f"there is no choice {pattern!r}", ", ".join(domains))
        values = self._domain(f"{where}.in", entry["in"])
        if len(self.problems) > before:
            return []
        known = {(type(value), value) for value in domains[when]}
        for value in values:
            if (type(value), value) not in known and domains[when]:
                self._complain(f"{where}.in", f"{when} is never {value!r}", ", ".join(map(str, domains[when])))
        return [Condition(name, when, values) for name in names]


def _building_problems(space: SearchSpace) -> list[Problem]:
    """Return what the family objects to in the corners of the space and in assignments drawn from it."""
    if not space.family:
        return []
    rng = np.random.default_rng(0)
    # From the largest one choice at a time, so that every value is tried.
    single = (assignment for _, assignment in space.neighbours(space.corners[1]))
    searched = {choice.name for choice in space.choices}
    problems: dict[Problem, None] = {}
    for assignment in [*space.corners, *single, *(space.random(rng) for _ in range(_TRIED_ASSIGNMENTS))]:
        try:
            stated_arch(space.family, space.active(assignment))
        except ConfigError as error:
            for problem in error.problems:
                section = "choices" if problem.where in searched or problem.where not in space.fixed else "fixed"
                problems[Problem(f"{section}.{problem.where}", problem.what, problem.allowed)] = None
    return list(problems)
