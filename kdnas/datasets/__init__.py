"""Data sources: each reads one format and gives the same record, decoded once into a memory-mapped cache."""

from __future__ import annotations

from collections.abc import Callable

from kdnas.core.data import Data
from kdnas.registry import Registry

DATASETS: Registry[Callable[..., Data]] = Registry("data set", __name__, "data_root", "cache")
"""Members: `function(data_root: Path, cache: Path, *, options) -> ImageData`. Raise DataError."""
