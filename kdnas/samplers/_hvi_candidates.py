"""Where the next student is looked for: random draws, variations of the front, neighbours of the most promising."""

from __future__ import annotations

import numpy as np

from kdnas.samplers._hvi_encoding import Encoding

_WHOLE = 2_000
"""Assignments up to which the whole space is looked at."""


def draws(encoding: Encoding, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return about `count` codes [N, D] of the whole space: all of a small one, else random draws and uniform ones.

    Uniform ones have the same level in every choice: the cheapest and dearest networks of a space are among them, which
    random draws miss.
    """
    levels = encoding.levels
    if np.prod(levels.astype(float)) <= _WHOLE:
        return np.indices(tuple(levels.tolist())).reshape(len(levels), -1).T
    drawn = rng.integers(levels, size=(count, len(levels)))
    uniform = np.minimum(np.arange(levels.max())[:, None], levels[None, :] - 1)
    return np.concatenate([uniform, drawn])


def variations(encoding: Encoding, parents: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` codes [N, D] from `parents` [Q, D]: half crossed with another parent, then all mutated."""
    dimensions = len(encoding.levels)
    children = parents[rng.integers(len(parents), size=count)]
    others = parents[rng.integers(len(parents), size=count)]
    crossed = (rng.random((count, dimensions)) < 0.5) & (rng.random(count) < 0.5)[:, None]
    children = np.where(crossed, others, children)
    changes = rng.geometric(0.5, size=count)
    redrawn = rng.random((count, dimensions)).argsort(axis=1) < changes[:, None]
    return np.where(redrawn, rng.integers(encoding.levels, size=(count, dimensions)), children)


def neighbours(encoding: Encoding, codes: np.ndarray) -> np.ndarray:
    """Return every code that differs in one dimension from one of `codes` [Q, D]."""
    result = []
    for column, levels in enumerate(encoding.levels):
        for level in range(levels):
            moved = codes[codes[:, column] != level]
            result.append(moved.copy())
            result[-1][:, column] = level
    return np.concatenate(result)
