"""Code that a run folder or a train.yaml names: whether this user ever meant it to run; databases that it names, too.

A folder may come from anybody, and names functions that kdnas would call. Owning its files proves nothing: a download
is owned by who downloaded it. So what this user's own studies name is signed where it is written, with a key that only
this user has; what others name is refused until it is trusted, once for each place, code and data root.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdnas.core.words import printable
from kdnas.plugins import plugins_named, resolved, vouch

_KEY_BYTES = 32
_NO_ROOT = Path("/")
"""Stands for the data root of plug-ins, which lie in none."""
_LINE = "# The code that this file names was named by a user's own study, who signed it: "
_SIGNATURE = re.compile(rf"^{re.escape(_LINE)}([0-9a-f]{{64}})$", re.MULTILINE)
# Of members of the type `module`: the options that name code, and the one that holds what it is called with.
_NAMING = {
    "data": (("function",), "options"),
    "teacher": (("factory",), "arguments"),
    "evaluator": (("function", "price"), "options"),
}


_STORAGE = "storage"
_REACHING = ("executor.address", "executor.runtime_env", "store", _STORAGE)
"""Settings that name other machines, which are sent data, code or passwords and answer with objects, or what is started
there.
"""
STORAGE_VARIABLE = "KDNAS_STORAGE"
"""Names a database that this user lets any run ask."""
_own_storages: set[str] = set()
"""Databases that this user's own studies and runs name, in this process."""


@dataclass(frozen=True)
class NamedCode:
    """A function or a plug-in that a file names as `spec`, under the key `where`, called with `arguments`.

    Or what the setting `where` reaches: a cluster, a store, a database, an environment.
    """

    where: str
    spec: str
    arguments: Mapping[str, Any]
    plugin: bool = False

    def in_words(self, data_root: Path) -> str:
        """Return in words what would run."""
        if self.where in _REACHING:
            return printable(f"{self.where}: {self.spec}", 4000)
        module, _, _ = self.spec.rpartition(":")
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        place = f" in {(data_root / module).resolve()}" if module.endswith(".py") else ""
        return printable(f"{self.where}: {self.spec}({given}){place}", 4000)


def config_dir() -> Path:
    """Return where this user's key and decisions are kept: KDNAS_CONFIG, or XDG_CONFIG_HOME's or ~/.config's kdnas."""
    stated = os.environ.get("KDNAS_CONFIG")
    if stated:
        return Path(stated).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".config") / "kdnas"


def code_named(settings: Mapping[str, Any]) -> list[NamedCode]:
    """Return the code that plain settings (a study's or a train.yaml's) name: plug-ins, then functions."""
    named = [NamedCode(plugin.where, plugin.spec, plugin.options, plugin=True) for plugin in plugins_named(settings)]
    places = {name: (settings.get(name), *naming) for name, naming in _NAMING.items()}
    for key in ("teachers", "further_teachers"):
        if isinstance(several := settings.get(key), Mapping):
            places |= {f"{key}.{name}": (teacher, *_NAMING["teacher"]) for name, teacher in several.items()}
    for section, (member, *_) in list(places.items()):
        if section != "evaluator" and isinstance(member, Mapping):
            places[f"{section}.data"] = (member.get("data"), *_NAMING["data"])
    for section, (member, keys, called_with) in places.items():
        if not isinstance(member, Mapping) or member.get("type") != "module":
            continue
        arguments = member.get(called_with)
        for key in keys:
            if member.get(key):
                given = arguments if isinstance(arguments, Mapping) else {}
                named.append(NamedCode(f"{section}.{key}", str(member[key]), given))
    return named


def reaching(settings: Mapping[str, Any]) -> list[NamedCode]:
    """Return what plain settings reach beyond this machine, and what they have started there."""
    found = []
    for where in _REACHING:
        value: Any = settings
        for key in where.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value and value != "local":
            found.append(NamedCode(where, value if isinstance(value, str) else json.dumps(value, default=str), {}))
    return found


def _to_be_vouched_for(settings: Mapping[str, Any]) -> list[NamedCode]:
    return [*code_named(settings), *reaching(settings)]


def signature_line(settings: Mapping[str, Any]) -> str:
    """Return the comment that marks a YAML file of `settings` as this user's; empty where it names no code.

    It is empty too where this user's key can neither be read nor made.
    """
    named = _to_be_vouched_for(settings)
    key = _key(make=True) if named else None
    return "" if key is None else f"{_LINE}{_signature(key, named)}\n"


def is_signed(text: str, named: Sequence[NamedCode]) -> bool:
    """Return whether the YAML file `text` is marked as this user's, naming `named`."""
    key = _key(make=False)
    if key is None:
        return False
    expected = _signature(key, named)
    return any(hmac.compare_digest(found, expected) for found in _SIGNATURE.findall(text))


def is_trusted(source: Path, named: Sequence[NamedCode], data_root: Path) -> bool:
    """Return whether the user has allowed the code that `source` names to run with this data root."""
    return _decision(source, named, data_root).is_file()


def strange_code(source: Path, settings: Mapping[str, Any], data_root: Path) -> list[NamedCode]:
    """Return the code that the YAML file `source` names and nobody vouches for: no study of this user's, nor he.

    Where somebody does, its plug-ins may run from now on.
    """
    settings = resolved(settings, source.parent)
    named = _to_be_vouched_for(settings)
    if named and not is_trusted(source, named, data_root):
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        if not is_signed(text, named):
            return [code for code in named if code.where != _STORAGE or not is_own_storage(code.spec)]
    _vouch_for(named)
    return []


def vouch_for_signed(source: Path, text: str, settings: Mapping[str, Any]) -> None:
    """Let the plug-ins run that the YAML file `source`, holding `text`, names, and its database be asked: if this user
    signed it or trusts them.

    Unlike functions, neither lies in a data root, which is not asked for.
    """
    named = _to_be_vouched_for(resolved(settings, source.parent))
    rootless = _rootless(named)
    if rootless and (is_signed(text, named) or is_trusted(source, rootless, _NO_ROOT)):
        _vouch_for(rootless)


def own_storage(url: str) -> None:
    """Let the database at `url` be asked by this process: a study of this user's names it."""
    _own_storages.add(url)


def is_own_storage(url: str) -> bool:
    """Return whether this user's own study or run, or KDNAS_STORAGE, names the database at `url`.

    Whoever is connected to is told the user's name, and may ask for the password.
    """
    return url in _own_storages or url == os.environ.get(STORAGE_VARIABLE)


def _rootless(named: Sequence[NamedCode]) -> list[NamedCode]:
    return [code for code in named if code.plugin or code.where == _STORAGE]


def _vouch_for(named: Sequence[NamedCode]) -> None:
    vouch(code.spec for code in named if code.plugin)
    _own_storages.update(code.spec for code in named if code.where == _STORAGE)


def trust(source: Path, named: Sequence[NamedCode], data_root: Path) -> None:
    """Remember that what `source` names may run; where that cannot be kept, it is asked again."""
    _vouch_for(named)
    for part, root in ((named, data_root), (_rootless(named), _NO_ROOT)):
        decision = _decision(source, part, root)
        with contextlib.suppress(OSError):
            decision.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lines = [f"{source.resolve()}: {code.in_words(root)}\n" for code in part]
            decision.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def _signature(key: bytes, named: Sequence[NamedCode]) -> str:
    return hmac.new(key, _canonical(named).encode(), hashlib.sha256).hexdigest()


def _canonical(named: Sequence[NamedCode]) -> str:
    return json.dumps([[code.where, code.spec, dict(code.arguments)] for code in named], sort_keys=True, default=str)


def _decision(source: Path, named: Sequence[NamedCode], data_root: Path) -> Path:
    what = json.dumps([str(source.resolve()), str(data_root.resolve()), _canonical(named)])
    return config_dir() / "trusted" / hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()


def _key(*, make: bool) -> bytes | None:
    """Return this user's key; None where there is none and it is not, or cannot be, made."""
    path = config_dir() / "signing.key"
    for _ in range(20):
        with contextlib.suppress(OSError):
            key = path.read_bytes()
            if len(key) == _KEY_BYTES:
                return key
            time.sleep(0.05)  # another process is writing it
            continue
        if not make:
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        except OSError:
            return None
        with os.fdopen(file, "wb") as stream:
            stream.write(secrets.token_bytes(_KEY_BYTES))
    return None
