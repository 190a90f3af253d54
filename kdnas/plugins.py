"""Members of a user's own: `path/to/file.py:Name` or `package.module:Name` wherever a member is named.

A file is looked for in the folder of what names it (a study, a search space, a train.yaml), and stands in records with
its whole path. Its code runs only once it is vouched for: named by this user's own study or command, or by a file that
he trusts (`kdnas.trust`). Processes that this one starts inherit what was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kdnas.errors import ConfigError, Problem

if TYPE_CHECKING:
    from kdnas.user_code import UserObject

T = TypeVar("T")
SPELLING = "or path/to/file.py:Name of your own"
"""What stands after the names of built-in members where they are listed."""
_VOUCHED = "KDNAS_PLUGINS"
_BROUGHT = "KDNAS_PLUGIN_FOLDERS"
_SPEC = re.compile(r"(?P<module>.+):(?P<name>[A-Za-z_]\w*)")
# Where members are named in a study, a search space, a train.yaml or a lock file; `*` is every key or place. What
# stands there is a name, or a section whose `type` is the name and whose other keys are options.
PLACES = {
    "evaluators": ("evaluator",),
    "tasks": ("task", "task.kind"),
    "datasets": ("data", "teacher.data", "teachers.*.data", "further_teachers.*.data"),
    "teachers": ("teacher", "teachers.*", "further_teachers.*"),
    "students": (
        "family",
        "space.family",
        "teacher.family",
        "teachers.*.family",
        "further_teachers.*.family",
        "arch.family",
    ),
    "losses": ("distillation.losses.*",),
    "proxies": ("training.proxy",),
    "policies": ("supernet.shrinking.policy",),
    "costs": ("costs.*",),
    "targets": ("costs.*.target",),
    "samplers": ("sampler",),
    "executors": ("executor",),
    "exporters": ("export.formats.*",),
    "trackers": ("trackers.*",),
}
_ROOT = "/./"
"""Stands in a whole path between the folder that user modules are imported from and the rest, as rsync has it."""
_NNI = "nni:"
"""Begins the names of NNI's tuners, which are samplers."""


@dataclass(frozen=True)
class NamedPlugin:
    """A plug-in that settings name under the key `where`, with its options."""

    where: str
    family: str
    spec: str
    options: Mapping[str, Any]


def is_plugin(name: str) -> bool:
    """Return whether a member's name is a plug-in's."""
    return ":" in name and not name.startswith(_NNI)


def short_name(name: str) -> str:
    """Return a member's name as users write it: a plug-in's relative to the folder of what names it."""
    return name.rpartition(_ROOT)[2] if is_plugin(name) else name


def resolved_name(name: str, folder: Path) -> str:
    """Return a member's name with the whole path of a plug-in's file, looked for in `folder`, which `/./` ends.

    A module that has no file there is left to be found among the installed ones.
    """
    match = _SPEC.fullmatch(name)
    if match is None or not is_plugin(name) or _ROOT in name:
        return name
    module = match["module"]
    file = Path(module).expanduser()
    if not module.endswith(".py"):
        stem = Path(*module.split("."))
        files = (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
        found = next((path for path in files if (folder / path).is_file()), None)
        if found is None:
            return name
        file = found
    relative = os.path.normpath(file)
    if file.is_absolute() or relative.startswith(os.pardir):
        folder, relative = (folder / relative).parent, file.name
    return f"{os.path.abspath(folder)}{_ROOT}{relative}:{match['name']}"  # noqa: PTH100 (links stay)


def resolved(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return plain `settings` with the names of plug-ins resolved in `folder`."""
    return _changed(settings, lambda name: resolved_name(name, folder))


def adopted(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return `resolved` settings of this user's own, whose plug-ins may run."""
    own = resolved(settings, folder)
    vouch(plugin.spec for plugin in plugins_named(own))
    return own


def own_name(name: str) -> str:
    """Return the member's name that this user gave on the command line: a plug-in lies relative to where he stands."""
    spec = resolved_name(name, Path())
    if is_plugin(spec):
        vouch([spec])
    return spec


def shortened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain `settings` with the names of plug-ins as users read them: equal wherever their files lie."""
    return _changed(settings, short_name)


def plugins_named(settings: Mapping[str, Any]) -> list[NamedPlugin]:
    """Return the plug-ins that plain `settings` name."""
    return [
        NamedPlugin(where, family, name, options)
        for family, patterns in PLACES.items()
        for pattern in patterns
        for where, name, options in _named(settings, pattern.split("."), ())
        if is_plugin(name)
    ]


def vouch(specs: Iterable[str]) -> None:
    """Let the code of these plug-ins run, in this process and in those that it starts."""
    if new := {*specs} - _vouched():
        os.environ[_VOUCHED] = json.dumps(sorted(_vouched() | new))


def plugin_folder(spec: str) -> str:
    """Return the folder that a plug-in is imported from; empty where it is an installed module."""
    return spec.rpartition(_ROOT)[0]


def bring(folders: Mapping[str, str]) -> None:
    """Look for plug-ins of other machines' `folders` in copies, in this process and in those that it starts."""
    if folders:
        os.environ[_BROUGHT] = json.dumps({**_brought(), **folders})


def load_plugin(spec: str) -> UserObject:
    """Return what `spec` names. Raises ConfigError where nobody vouches for it, or as `load_user_object` does."""
    from kdnas.user_code import load_user_object  # here: names alone are read without it

    if spec not in _vouched():
        what = f"{spec} does not run: no study of yours on this machine named it"
        raise ConfigError(Problem("", f"{what}; where you trust the run that does: kdnas search RUN --trust-code"))
    folder, _, inside = spec.rpartition(_ROOT)
    place = _brought().get(folder, folder)
    return load_user_object(inside, Path(place or os.devnull))  # no folder: an installed module


def code_fingerprints(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of the files of the plug-ins that `settings` name, by each file's name. Raises ConfigError."""
    files: dict[str, dict[str, bytes]] = {}
    for plugin in plugins_named(settings):
        for path in load_plugin(plugin.spec).files:
            files.setdefault(path.name, {})[str(path)] = path.read_bytes()
    return {
        name: hashlib.sha256(b"\0".join(sorted(contents.values()))).hexdigest()[:16]
        for name, contents in sorted(files.items())
    }


def _vouched() -> frozenset[str]:
    return frozenset(_read_variable(_VOUCHED, []))


def _brought() -> dict[str, str]:
    return _read_variable(_BROUGHT, dict[str, str]())


def _read_variable(name: str, none: T) -> T:
    """Return the JSON in an environment variable; `none` where there is none of its type."""
    try:
        known = json.loads(os.environ.get(name, ""))
    except ValueError:
        return none
    return known if isinstance(known, type(none)) else none


def _named(value: Any, pattern: list[str], way: tuple[str, ...]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (key, name, options) of every member that stands at `pattern` inside `value`, which stands at `way`."""
    if pattern:
        for key, part in _parts(value, pattern[0]):
            yield from _named(part, pattern[1:], (*way, str(key)))
    elif isinstance(value, str):
        yield ".".join(way), value, {}
    elif isinstance(value, Mapping) and isinstance(value.get("type"), str):
        options = {key: option for key, option in value.items() if key != "type"}
        yield ".".join((*way, "type")), value["type"], options


def _changed(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    result: dict[str, Any] = dict(settings)
    for patterns in PLACES.values():
        for pattern in patterns:
            result = _mapped(result, pattern.split("."), change)
    return result


def _mapped(value: Any, pattern: list[str], change: Callable[[str], str]) -> Any:
    """Return `value` with the names that stand at `pattern` inside it changed."""
    if pattern:
        replaced = {key: _mapped(part, pattern[1:], change) for key, part in _parts(value, pattern[0])}
        if not replaced:
            return value
        if isinstance(value, Mapping):
            return {key: replaced.get(key, part) for key, part in value.items()}
        return [replaced[index] for index in range(len(value))]
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        return {**value, "type": change(value["type"])}
    return value


def _parts(value: Any, step: str) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items()) if step == "*" else [(step, value[step])] if step in value else []
    return list(enumerate(value)) if step == "*" and isinstance(value, list | tuple) else []
