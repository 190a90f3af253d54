"""YAML as plain data that remembers where every key stands.

    document = read_yaml(Path("study.yaml"))
    document.data                                # {"name": "digits", "training": {"epochs": 5}, ...}
    document.line_of(("training", "epochs"))     # 12; a dotted "training.epochs" works as well
    raise ConfigError(document.in_order([
        Problem("training.epochs", "must be at least 1, got 0"),
    ]))                                          # "study.yaml:12: training.epochs: must be at least 1, got 0"

Only plain data comes out: dicts with string keys, lists, strings, ints, floats, booleans and None. Scalars follow YAML
1.2's core schema rather than PyYAML's 1.1: `10e6` and `1e-3` are floats, `no` and `2024-01-01` are strings.
Everything else is refused with its line: duplicate keys, tabs, tags, merge keys, several documents, endless or
exploding aliases, a top level that is no mapping.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from kdnas.errors import ConfigError, Problem
from kdnas.plain_yaml import resolve_core_schema
from kdnas.regular import regular

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000
"""Values in one document, every alias written out."""

OVERRIDE = 0
"""The line number of a value that came from the command line."""


@dataclass(frozen=True)
class YamlDocument:
    """One YAML file: its `data`, and the line (from 1) of every key and list item by key path."""

    name: str
    """What problems call the file, `study.yaml`."""
    data: dict[str, Any]
    lines: Mapping[KeyPath, int]
    """Without the whole document's, the key path (), where the data never stood in a file."""

    def line_of(self, where: str | Sequence[str | int]) -> int:
        """Return the line of `where` (a key path or its dotted text), or of the nearest section around it."""
        dotted = where if isinstance(where, str) else _dotted(where)
        inside = [line for text, line in self._by_text.items() if text.startswith(f"{dotted}.")]
        if dotted not in self._by_text and inside:  # a section that an override has made
            return min(inside)
        while dotted:
            if dotted in self._by_text:
                return self._by_text[dotted]
            dotted = dotted.rpartition(".")[0]
        return self.lines.get((), 1)

    @cached_property
    def _by_text(self) -> dict[str, int]:
        return {_dotted(path): line for path, line in self.lines.items()}

    def problem(self, where: str | Sequence[str | int], what: str, allowed: str = "") -> Problem:
        """Return a problem at `where`, spelled `study.yaml:12: dotted.key: what (allowed: ...)`."""
        dotted = where if isinstance(where, str) else _dotted(where)
        line = self.line_of(dotted)
        if line == OVERRIDE:
            place = "--set"
        else:
            place = f"{self.name}:{line}" if () in self.lines else self.name
        return Problem(f"{place}: {dotted}" if dotted else place, what, allowed)

    def in_order(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return `problems`, whose `where` is a dotted key, with file and line, sorted by line, each once."""
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: self.line_of(problem.where))
        return [self.problem(problem.where, problem.what, problem.allowed) for problem in ordered]

    def with_value(self, path: KeyPath, value: Any) -> YamlDocument:
        """Return the document with `value` at `path`, marked as coming from the command line.

        Sections that are missing on the way are made. Raises LookupError where the path leads through a scalar or past
        the end of a list; its message quotes what stands there.
        """
        data = _set(self.data, path, value, ())
        kept = {key: line for key, line in self.lines.items() if key[: len(path)] != path}
        return replace(self, data=data, lines={**kept, path: OVERRIDE})


def read_yaml(path: Path, name: str = "") -> YamlDocument:
    """Return the YAML file at `path`. Problems call it `name`, by default the file's own name. Raises ConfigError."""
    name = name or path.name
    try:
        if regular(path).stat().st_size > MAX_BYTES:
            raise ConfigError(Problem(name, f"larger than {MAX_BYTES:,} bytes: not a configuration file"))
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(name, f"not UTF-8 text (byte {error.start})")) from None
    except OSError as error:
        raise ConfigError(Problem(str(path), error.strerror or type(error).__name__)) from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> YamlDocument:
    """Return `text` as a document that problems call `name`. Raises ConfigError with every line that is wrong."""
    node = _compose(text, name)
    if node is None:
        raise ConfigError(Problem(name, "is empty"))
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise ConfigError(Problem(f"{name}:{line}", "the top level must be a mapping (`key: value` lines)"))
    reader = _Reader(name)
    data = reader.value(node, ())
    if reader.problems:
        raise ConfigError(reader.problems)
    return YamlDocument(name, data, reader.lines)


def parse_value(text: str) -> Any:
    """Return one YAML value, as in `--set key=value`. Raises ConfigError."""
    node = _compose(text, "")
    reader = _Reader("")
    value = reader.value(node, ()) if node is not None else None
    if reader.problems:
        raise ConfigError(Problem("", problem.what, problem.allowed) for problem in reader.problems)
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the implicit types of YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}

resolve_core_schema(_Loader)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not YAML"
        if "'\\t'" in what:
            what = "a tab: YAML is indented with spaces"
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(Problem(place if name else "", what)) from None
    except yaml.YAMLError as error:  # ReaderError: a control character
        raise ConfigError(Problem(name, str(error).partition("\n")[0])) from None
    except RecursionError:
        raise ConfigError(Problem(name, "nested too deeply")) from None


class _Reader:
    """Turns nodes into plain data, noting lines and problems."""

    def __init__(self, name: str):
        self.name = name
        self.lines: dict[KeyPath, int] = {(): 1}
        self.problems: list[Problem] = []
        self._open: list[yaml.Node] = []
        self._values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the plain value of `node`, which stands at `path`."""
        self._values += 1
        if self._values > MAX_VALUES:
            self._refuse(node, path, f"more than {MAX_VALUES:,} values once the aliases are written out")
            raise ConfigError(self.problems)
        if any(node is parent for parent in self._open):
            self._refuse(node, path, "an alias that contains itself")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.append(node)
        try:
            return self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self._plain(node, path, "map")
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, path, "a key must be plain text")
                continue
            key = key_node.value
            here = (*path, key)
            if key == "<<" and key_node.style is None:
                self._refuse(key_node, here, "merge keys are not read: write the keys out")
            elif key in result:
                self._refuse(key_node, here, f"stands twice (first on line {self.lines[here]})")
            else:
                self.lines[here] = key_node.start_mark.line + 1
                result[key] = self.value(value_node, here)
        return result

    def _sequence(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        self._plain(node, path, "seq")
        result = []
        for index, item in enumerate(node.value):
            here = (*path, index)
            self.lines[here] = item.start_mark.line + 1
            result.append(self.value(item, here))
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.rpartition(":")[2], node.value
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                return int(text, 0) if text.lstrip("+-")[:2] in ("0x", "0o") else int(text)
            if kind == "float":
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        except ValueError:
            self._refuse(node, path, f"{text[:40]!r} is not a number")
            return None
        self._plain(node, path, "str")
        return text

    def _plain(self, node: yaml.Node, path: KeyPath, kind: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{kind}":
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(node, path, f"tag {tag} is not read: only plain data is")

    def _refuse(self, node: yaml.Node, path: KeyPath, what: str) -> None:
        line = node.start_mark.line + 1
        place = f"{self.name}:{line}"
        self.problems.append(Problem(f"{place}: {_dotted(path)}" if path else place, what))


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)


def _set(data: Any, path: KeyPath, value: Any, done: KeyPath) -> Any:
    """Return a copy of `data` with `value` at `path`; `done` is the way walked so far."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    here = _dotted(done) or "the top level"
    if isinstance(data, list):
        if not isinstance(key, int) or not 0 <= key < len(data):
            raise LookupError(f"{here} is a list of {len(data)}; {key!r} is no place in it")
        return [_set(item, rest, value, (*done, key)) if i == key else item for i, item in enumerate(data)]
    if data is None or data == {}:
        data = {}
    if not isinstance(data, dict):
        raise LookupError(f"{here} is {data!r}, which has no {key!r} inside")
    return {**data, str(key): _set(data.get(str(key)), rest, value, (*done, key))}
