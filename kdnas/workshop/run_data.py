"""The data of a run that has begun: what its scores rest on is kept in the cache, and nothing else passes for it.

Files are read anew and compared. A user's function (`data: {type: module}`) may draw, a split without a seed for one,
so that each call gives other data: it is called once a run, and everybody after that opens what it gave then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from kdnas.core.data import ImageData
from kdnas.datasets._cache import kept_data
from kdnas.errors import DataError, Problem
from kdnas.study.config import DataConfig
from kdnas.workshop.opening import open_data

_CALLED = "module"
"""The data set that is a function of the user's: whether it changed cannot be seen but by calling it."""


def open_handed_data(config: DataConfig, data_root: Path, cache: Path, fingerprint: str) -> ImageData:
    """Return the very data that this run's controller has opened, for its workers.

    Raises DataError where they are not in the cache and `config` gives others now, ConfigError.
    """
    kept = kept_data(cache, fingerprint)
    if kept is not None:
        return kept
    data = open_data(config, data_root, cache)
    if data.fingerprint != fingerprint:
        what = (
            f"gives other data (content hash {data.fingerprint}) than those that the run is made on ({fingerprint}), "
            f"which are no longer in {cache}"
        )
        often = ": the function draws without a seed, or was changed" if config.type == _CALLED else ""
        raise DataError(Problem(f"data: {data.name}", what + often, "the same data whenever they are loaded"))
    return data


def open_run_data(
    config: DataConfig,
    data_root: Path,
    cache: Path,
    fingerprint: str,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> ImageData:
    """Return the data of a run for what is done with its students: a function's as kept, files as they are now.

    The caller compares the fingerprint of the latter. Raises DataError, ConfigError.
    """
    if config.type != _CALLED or not fingerprint:
        return open_data(config, data_root, cache)
    data = open_handed_data(config, data_root, cache, fingerprint)
    say(f"note: the data are those of the run, kept in {cache}: {config.options['function']} is not called again")
    return data


def reopen_data(
    config: DataConfig, data_root: Path, cache: Path, fingerprint: str, *, say: Callable[[str], None]
) -> ImageData:
    """Return the data of a run that is resumed: as they are now, or kept where a function gives others at each call.

    The caller compares the fingerprint. Raises DataError, ConfigError.
    """
    data = open_data(config, data_root, cache)
    if config.type != _CALLED or data.fingerprint == fingerprint:
        return data
    with _other_random_states():
        again = open_data(config, data_root, cache)
    if again.fingerprint == data.fingerprint:
        return data  # it gives one thing, which is not what it was
    kept = open_handed_data(config, data_root, cache, fingerprint)
    say(
        f"note: {config.options['function']} gives other data whenever it is called, as without a seed; the run goes "
        f"on with its own, kept in {cache}"
    )
    return kept


@contextmanager
def _other_random_states() -> Iterator[None]:
    """Give the generators that a program shares other states within, so that what draws from them shows."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed()
    np.random.seed()
    torch.seed()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
