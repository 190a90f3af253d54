"""The user's own modules: they find each other, nothing else finds them, and their names are private.

Modules of a study stand in packages of kdnas's own making (`kdnas.user_code.of_...`), whose path is the user's folders.
The import statements of these modules alone look there first, whenever they run, so that `import utils` means the file
next to them; a `utils`, `datasets` or `random` of the user's never answers anybody else's import, nor another study's.
Processes that this one starts find the packages again (an environment variable lists their folders), so that a
DataLoader's workers get the user's data set whichever way they are started.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_PREFIX = f"{__package__}.of_"
_FOLDERS = "KDNAS_USER_FOLDERS"
_INSTALLED = frozenset({"site-packages", "dist-packages"})


def import_file(path: Path, root: Path) -> ModuleType:
    """Return the module of the file `path`. Raises FileNotFoundError, and whatever the module raises.

    Its folder and `root` are importable by what stands in them. A file inside a package (folders with an `__init__.py`)
    is that package's module, so that it can import from above.
    """
    path = path.resolve(strict=True)
    if path.suffix != ".py":
        raise ImportError(f"{path} is not a Python file")
    base = path.parent
    while (base / "__init__.py").is_file() and base != base.parent:
        base = base.parent
    names = [*path.parent.relative_to(base).parts, path.stem]
    package = _package((base, root.resolve(), path.parent))
    if any("." in name for name in names):  # no name that an import could ask for
        return _loaded(f"{package}.{path.stem.replace('.', '_')}", path)
    if names[-1] == "__init__":
        names.pop()
    return importlib.import_module(".".join([package, *names]))


def import_dotted(name: str, wanted: str, root: Path) -> ModuleType:
    """Return the module `name`, which shall have `wanted`: of the user's folder `root`, else an installed one."""
    module: ModuleType = _Importer(_package((root.resolve(),)))(name, {}, {}, (wanted,), 0)
    return module


def folders_of(module: ModuleType) -> tuple[Path, ...]:
    """Return the user's folders that `module` may import from; none for an installed module."""
    package = _package_of(module.__name__)
    return () if package is None else tuple(Path(entry) for entry in sys.modules[package].__path__)


def files_of(module: ModuleType) -> tuple[Path, ...]:
    """Return the file of `module`, then those of the user's modules that it and these imported."""
    seen: set[str] = set()
    pending = [module.__name__]
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += _IMPORTED.get(name, ())
    files = [getattr(sys.modules.get(name), "__file__", None) for name in [module.__name__, *sorted(seen)]]
    return tuple(dict.fromkeys(Path(file) for file in files if file is not None))


def adopt(module: ModuleType, entries: Sequence[str]) -> None:
    """Let `module` and its neighbours go on importing from `entries`, which the user's code put into sys.path."""
    package = _package_of(module.__name__)
    if package is not None:
        _adopt(package, entries, first=False)


def own_name(module: ModuleType) -> str:
    """Return the name of a user's module as its neighbours import it; of an installed one its own."""
    return without_prefix(module.__name__)


def files_with(module: ModuleType) -> dict[str, Path]:
    """Return the user's files that were imported with `module`, by where they lie in the folder they come from."""
    package = _package_of(module.__name__)
    files: dict[str, Path] = {}
    for name, other in list(sys.modules.items()) if package is not None else []:
        file = getattr(other, "__file__", None)
        if name.startswith(f"{package}.") and file is not None:
            path = Path(file)
            inside = name.removeprefix(f"{package}.").replace(".", "/")
            files[f"{inside}/__init__.py" if path.name == "__init__.py" else f"{inside}.py"] = path
    return files


def is_users(file: str, folders: Sequence[Path]) -> bool:
    """Return whether `file` stands in one of the user's folders and is no installed package's."""
    path = Path(file)
    return not _INSTALLED & set(path.parts) and any(path.is_relative_to(folder) for folder in folders)


def is_own(namespace: Mapping[str, Any]) -> bool:
    """Return whether these globals are those of a user's module."""
    return str(namespace.get("__name__", "")).startswith(_PREFIX)


def without_prefix(text: str) -> str:
    """Return a message with the user's modules as the user calls them."""
    return re.sub(rf"{re.escape(_PREFIX)}[0-9a-f]+\.", "", text)


def forget_strays(folders: Sequence[Path], before: Mapping[str, ModuleType]) -> None:
    """Drop modules of `folders` that came under their plain names since `before`: by importlib, or out of a pickle."""
    if len(sys.modules) == len(before):
        return
    for name in sys.modules.keys() - before.keys():
        top = name.partition(".")[0]
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or top == "kdnas" or not is_users(file, folders):
            continue
        inside = [Path(file).relative_to(folder).parts for folder in folders if Path(file).is_relative_to(folder)]
        if any(parts and parts[0].partition(".")[0] == top for parts in inside):
            del sys.modules[name]


class _Loader(SourceFileLoader):
    """Loads a user's source file: never from an old compiled file, and with import statements of its own."""

    stamp: tuple[int, int] | None = None

    def get_code(self, fullname: str) -> CodeType:
        self.stamp = _stamp(self.path)
        return self.source_to_code(self.get_data(self.path), self.path)

    def exec_module(self, module: ModuleType) -> None:
        importer = _Importer(_package_of(module.__name__) or module.__name__)
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": importer}
        super().exec_module(module)


class _Finder:
    """Finds what stands in the packages of users' modules, and nothing else."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        if fullname == _package_of(fullname):
            folders = _known().get(fullname)
            if folders is None:
                return None
            specification = ModuleSpec(fullname, None, is_package=True)
            specification.submodule_search_locations = list(folders)
            return specification
        found = PathFinder.find_spec(fullname, path)
        if found is not None and found.origin is not None and type(found.loader) is SourceFileLoader:
            found.loader = _Loader(fullname, found.origin)
        return found


class _Importer:
    """The `__import__` of the modules of one package: the user's own modules come first, save for the system's."""

    def __init__(self, package: str):
        self._package = package

    def __call__(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level:
            module = builtins.__import__(name, globals, locals, fromlist or (), level)
            _note_import(
                globals, importlib.util.resolve_name("." * level + name, _text(globals, "__package__")), fromlist
            )
            return module
        top = name.partition(".")[0]
        own = self._kind(top)
        system = top in sys.stdlib_module_names
        if (own == "regular" and not system) or (own == "folder" and not _is_installed(top)):
            return self._own(name, fromlist, globals)
        try:
            module = builtins.__import__(name, globals, locals, fromlist or (), 0)
        except ModuleNotFoundError as error:
            if own is None or error.name is None or error.name.partition(".")[0] != top:
                raise
            return self._own(name, fromlist, globals)
        if system and own == "regular" and not all(hasattr(module, item) for item in fromlist or ()):
            return self._own(name, fromlist, globals)  # `from test import evaluate` means the user's test.py
        return module

    def _kind(self, top: str) -> str | None:
        """Return what the user's folders have of that name: a "regular" module or package, a "folder", or None."""
        if top == "kdnas":
            return None
        full = f"{self._package}.{top}"
        specification = getattr(sys.modules.get(full), "__spec__", None)
        if specification is None:
            _adopt(self._package, sys.path[: _new_entries()], first=True)
            specification = PathFinder.find_spec(full, sys.modules[self._package].__path__)
        if specification is None:
            return None
        return "folder" if specification.origin is None else "regular"

    def _own(self, name: str, fromlist: Sequence[str] | None, globals: Mapping[str, object] | None) -> ModuleType:
        full = f"{self._package}.{name}"
        if fromlist:
            module = builtins.__import__(full, None, None, fromlist, 0)
        else:
            importlib.import_module(full)
            module = sys.modules[f"{self._package}.{name.partition('.')[0]}"]
        _note_import(globals, full, fromlist)
        return module


_IMPORTED: dict[str, set[str]] = {}
"""By a user's module, those of the user's modules that it has imported."""


def _note_import(importer: Mapping[str, object] | None, name: str, fromlist: Sequence[str] | None) -> None:
    """Note that the module of these globals imported the user's module `name`, or modules inside that package."""
    parts = name.split(".")
    names = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    names |= {f"{name}.{item}" for item in fromlist or () if f"{name}.{item}" in sys.modules}
    _IMPORTED.setdefault(_text(importer, "__name__"), set()).update(n for n in names if n.startswith(_PREFIX))


def _text(namespace: Mapping[str, object] | None, key: str) -> str:
    return str((namespace or {}).get(key) or "")


_path_before: list[str] = []
"""sys.path as it was before the user's code that runs now; empty where none runs."""


def watch_path(before: Sequence[str]) -> None:
    """From now on, what a user's code puts before these entries of sys.path is that code's alone; none: stop."""
    _path_before[:] = before


def _new_entries() -> int:
    """Return how many entries were put before the first that sys.path had."""
    if not _path_before:
        return 0
    return next((index for index, entry in enumerate(sys.path) if entry in _path_before), 0)


def _is_installed(top: str) -> bool:
    """Return whether there is a module or package of that name apart from the user's folders."""
    if top in sys.modules:
        return True
    found = PathFinder.find_spec(top, _path_before or None)
    return found is not None and found.origin is not None


def _adopt(package: str, entries: Sequence[str], *, first: bool) -> None:
    path = sys.modules[package].__path__
    for entry in reversed(entries):
        folder = str(Path(entry).resolve())
        if folder not in path and not _INSTALLED & set(Path(folder).parts):
            path.insert(0 if first else len(path), folder)


def _package(folders: Sequence[Path]) -> str:
    """Return the name of the package of `folders`, which is made anew when a source file of it has changed."""
    path = list(dict.fromkeys(map(str, folders)))
    name = _PREFIX + hashlib.sha256("\0".join(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    importlib.invalidate_caches()
    if name in sys.modules and _has_changed(name):
        for loaded in [loaded for loaded in sys.modules if loaded == name or loaded.startswith(f"{name}.")]:
            del sys.modules[loaded]
            _IMPORTED.pop(loaded, None)
    os.environ[_FOLDERS] = json.dumps(_known() | {name: path})
    importlib.import_module(name)
    return name


def _known() -> dict[str, list[str]]:
    """Return the folders of the packages that this process or one that started it has made."""
    try:
        known = json.loads(os.environ.get(_FOLDERS, "{}"))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def _package_of(module: str) -> str | None:
    """Return the package of kdnas's making that a module's name lies in; None for other modules."""
    if not module.startswith(_PREFIX):
        return None
    return _PREFIX + module.removeprefix(_PREFIX).partition(".")[0]


def _has_changed(package: str) -> bool:
    loaders = [
        getattr(module.__spec__, "loader", None)
        for name, module in sys.modules.items()
        if name.startswith(f"{package}.")
    ]
    return any(isinstance(loader, _Loader) and _stamp(loader.path) != loader.stamp for loader in loaders)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _loaded(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    loader = _Loader(name, str(path))
    module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


sys.meta_path.insert(0, _Finder)
