"""Data sources: each reads one format and gives the same record, decoded once into a memory-mapped cache."""

from __future__ import annotations

import typing
from collections.abc import Callable

from kdnas.core.data import Data
from kdnas.errors import ConfigError
from kdnas.registry import Registry

DATASETS: Registry[Callable[..., Data]] = Registry("data set", __name__, "data_root", "cache")
"""Members: `function(data_root: Path, cache: Path, *, options) -> Data`, the kind of data. Raise DataError."""


def kind_of(name: str) -> type[Data]:
    """Return the kind of data that the member called `name` is annotated to return; `Data` where it is not.

    A user's own is not asked where nobody vouches for its code.
    """
    try:
        returned = typing.get_type_hints(DATASETS.get(name)).get("return")
    except (ConfigError, ImportError, NameError):  # reported by whoever opens it; a plug-in may be annotated badly
        return Data
    return returned if isinstance(returned, type) and issubclass(returned, Data) else Data
