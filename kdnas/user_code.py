"""Code that the user named in a study: the only code outside the installed packages that kdnas ever runs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from kdnas.core.seeds import derive_seed
from kdnas.errors import ConfigError, Problem


def load_user_object(spec: str, root: Path) -> Any:
    """Return the object that `spec` names: `package.module:function` or `path/to/file.py:function`.

    A file path is taken relative to `root`. Raises ConfigError when the spec is malformed, the module or the name is
    missing, or the module itself fails to import.
    """
    module_name, separator, name = spec.rpartition(":")
    if not separator or not module_name or not name:
        raise ConfigError(Problem("", f"{spec!r} is not module:function or path/to/file.py:function"))
    try:
        module = _load_file(root / module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except FileNotFoundError:
        raise ConfigError(Problem("", f"{spec!r}: there is no file {root / module_name}")) from None
    except (Exception, SystemExit) as error:  # a script that parses its command line or exits when imported, too
        raise ConfigError(Problem("", f"{spec!r} cannot be imported: {type(error).__name__}: {error}")) from error
    if not hasattr(module, name):
        public = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise ConfigError(Problem("", f"{spec!r}: the module has no {name!r}", public))
    return getattr(module, name)


def _load_file(path: Path) -> Any:
    path = path.resolve(strict=True)
    # A name of its own for each path, so that two files called teacher.py do not shadow each other.
    name = f"kdnas_user_{path.stem}_{derive_seed(0, str(path)):x}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
