"""Functions of the user's own that load a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdnas.errors import DataError, Problem
from kdnas.user_code import UserCodeFailed, load_user_function


def returned_splits(
    function: str, data_root: Path, options: dict[str, Any] | None, allowed: str
) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Return what `function(data_root, **options)` returns, and notes.

    It is samples and labels to train on, samples and labels to test on, and perhaps class names, as `allowed`
    describes. Raises DataError where the function fails or returns something else; ConfigError where it cannot be
    imported.
    """
    loader = load_user_function(function, data_root)
    try:
        result = loader(data_root, **(options or {}))
    except UserCodeFailed as error:
        raise DataError(Problem("data", str(error))) from error
    if not isinstance(result, tuple) or len(result) not in (4, 5):
        found = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise DataError(Problem(function, f"returned {found}", allowed))
    return result, loader.notes
