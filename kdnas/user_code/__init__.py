"""Code that the user named in a study: the only code outside the installed packages that kdnas ever runs.

It finds the modules next to it, has the process's settings to itself, and what it raises becomes one message.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from kdnas.errors import ConfigError, Problem
from kdnas.user_code import _imports
from kdnas.user_code._surroundings import Surroundings, differing, read_surroundings, reported, write_surroundings


class UserCodeFailed(Exception):
    """A user's function raised or exited; `str` has the error and its place in the user's files."""


class UserObject:
    """What a study names as `spec`: a function, or a class that stands in for a member of kdnas's own.

    `notes` name what its module changed of what holds for the whole process.
    """

    def __init__(self, spec: str, value: Any, kept: _Kept):
        self.spec = spec
        self.value = value
        self._kept = kept

    def failure(self, error: BaseException) -> str:
        """Return what was raised and, where it was raised in a user's file, the line of that file."""
        return _failure_in_words(error, self._kept.folders)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that it stands in, then those of the user's own that it has imported."""
        return () if self._kept.module is None else _imports.files_of(self._kept.module)

    @property
    def name(self) -> str:
        """`module:function` as a program in the folder of the user's files would import it."""
        module = self._kept.module
        return self.spec if module is None else f"{_imports.own_name(module)}:{self.spec.rpartition(':')[2]}"

    @property
    def sources(self) -> dict[str, Path]:
        """The user's files that were imported for it, by where they lie in the folder that they are imported from."""
        return {} if self._kept.module is None else _imports.files_with(self._kept.module)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the code changed of the process, in words; empty where nothing."""
        if not self._kept.changed:
            return ()
        changed = ", ".join(self._kept.changed)
        return (f"the code of {self.spec} changed what holds for the whole process ({changed}): put back",)


class UserFunction(UserObject):
    """A function that a study names, called as the user's program would call it.

    What its module set for the whole process (gradients, dtype, threads, random state, working folder ...) holds while
    it runs, and what it sets holds for its next call; kdnas's own settings are put back after each. `notes` name them.
    """

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        function: Callable[..., Any] = self.value
        return function

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function. Raises UserCodeFailed whatever it raises, `sys.exit()` too."""
        try:
            with self._kept.theirs():
                return self.function(*arguments, **options)
        except (Exception, SystemExit) as error:
            raise UserCodeFailed(f"{self.spec!r} fails: {self.failure(error)}") from error


def load_user_function(spec: str, root: Path) -> UserFunction:
    """Return the function that `spec` names. Raises ConfigError as `load_user_object` does, and where it is none."""
    named = load_user_object(spec, root)
    if not callable(named.value):
        raise ConfigError(Problem("", f"{spec!r} is not a function but of type {type(named.value).__name__}"))
    return UserFunction(spec, named.value, named._kept)


def load_user_object(spec: str, root: Path) -> UserObject:
    """Return what `spec` names: `package.module:name` or `path/to/file.py:name`.

    Files and modules are looked for in `root`, modules then among the installed ones. The file's folder and `root` are
    importable by the user's modules, at any time. Raises ConfigError when the spec is malformed, the module or the name
    is missing, or the module itself fails to import.
    """
    module_name, separator, name = spec.rpartition(":")
    if not separator or not module_name or not name:
        raise ConfigError(Problem("", f"{spec!r} is not module:function or path/to/file.py:function"))
    path = root / Path(module_name).expanduser() if module_name.endswith(".py") else None
    if path is not None and not path.is_file():
        raise ConfigError(Problem("", f"{spec!r}: there is no file {path}"))
    kept = _Kept((root.resolve(),) if path is None else (path.resolve().parent, root.resolve()))
    try:
        with kept.theirs():
            if path is None:
                module = _imports.import_dotted(module_name, name, root)
            else:
                module = _imports.import_file(path, root)
            kept.module = module
    except (Exception, SystemExit) as error:  # a script that parses its command line or exits when imported, too
        raise ConfigError(
            Problem("", f"{spec!r} cannot be imported: {_failure_in_words(error, kept.folders)}")
        ) from error
    kept = _AS_IMPORTED.setdefault(module, kept).copy()
    if not hasattr(module, name):
        public = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise ConfigError(Problem("", f"{spec!r}: the module has no {name!r}", public))
    return UserObject(spec, getattr(module, name), kept)


class _Kept:
    """The process's settings as one user's code left them, put in place whenever that code runs."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.module: ModuleType | None = None
        self.changed: list[str] = []
        self._folders = tuple(folders)
        self._theirs: Surroundings = {}

    def copy(self) -> _Kept:
        """Return the same for another function of the module, or for another time that it is asked for."""
        kept = _Kept(self._folders)
        kept.module, kept.changed, kept._theirs = self.module, list(self.changed), dict(self._theirs)
        return kept

    @property
    def folders(self) -> tuple[Path, ...]:
        """The user's folders."""
        return self._folders if self.module is None else _imports.folders_of(self.module)

    @contextlib.contextmanager
    def theirs(self) -> Iterator[None]:
        """Within it the user's settings hold; afterwards those from before, and new ones are kept for the next time."""
        ours, path, modules = read_surroundings(), list(sys.path), dict(sys.modules)
        write_surroundings(self._theirs, ours)
        sys.path.extend(str(folder) for folder in self.folders)  # for imports by name: importlib, pickle
        _imports.watch_path(path)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
                yield
        finally:
            _imports.watch_path(())
            if self.module is not None:
                _imports.adopt(self.module, [entry for entry in sys.path if entry not in path])
            now = read_surroundings()
            changed = [name for name in differing(ours, now) if name not in _OURS]
            self._theirs |= {name: now[name] for name in (*changed, *self._theirs) if name in now}
            write_surroundings(ours, now)
            new = [name for name in reported(changed) if name not in self.changed]
            self.changed += [name for name in new if not _by_library(name, modules)]
            _imports.forget_strays(self.folders, modules)


_AS_IMPORTED: WeakKeyDictionary[ModuleType, _Kept] = WeakKeyDictionary()
"""What modules left behind when they were imported: that happens once, however often their functions are asked for."""
_OURS = frozenset({"sys.path", "sys.stdout, sys.stderr"})


def _by_library(name: str, before: Mapping[str, ModuleType]) -> bool:
    """Whether an installed module that was imported since `before` may have changed it, as many do."""
    if name not in ("warning filters", "logging"):
        return False
    files = (getattr(sys.modules[module], "__file__", None) or "" for module in sys.modules.keys() - before.keys())
    return any("site-packages" in file for file in files)


def blamed(error: BaseException) -> str:
    """Return what was raised and the line of a user's file that it came through; empty where it came through none."""
    frames = traceback.walk_tb(error.__traceback__)
    own = [
        traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in frames
        if _imports.is_own(frame.f_globals)
    ]
    return _sentence(error, own) if own else ""


def _failure_in_words(error: BaseException, folders: Sequence[Path]) -> str:
    """Return what was raised and, where it was raised in a user's file, the line of that file."""
    frames = traceback.extract_tb(error.__traceback__)
    return _sentence(error, [frame for frame in frames if _imports.is_users(frame.filename, folders)])


def _sentence(error: BaseException, own: Sequence[traceback.FrameSummary]) -> str:
    """Return what was raised, and the last of the user's `own` frames that it came through."""
    message = _imports.without_prefix(str(error)) or "without a message"
    if isinstance(error, SystemExit):
        message = f"{error.code}: " if error.code is not None else ""
        message += "it ends the program instead of going on"
    if not own:
        return f"{type(error).__name__}: {message}"
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
    where += "" if own[-1].name == "<module>" else f", in {own[-1].name}"
    return f"{type(error).__name__}: {message} ({where})"
