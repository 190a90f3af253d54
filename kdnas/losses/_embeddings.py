"""Embeddings of a batch that are compared with each other.

Shapes: M rows, D width.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs

Samples = Annotated[int, Field(ge=2, le=16384)]
"""How many rows of a batch, the first of a shuffled one, are compared with each other: memory grows by its square."""


def counted(rows: Rows, *values: Tensor, most: int | None = None) -> tuple[Tensor, ...]:
    """Return `values` [M, ...] of the rows that count, at most so many: what is padding stands in no pair."""
    if rows.weights is not None:
        there = rows.weights > 0
        values = tuple(each[there] for each in values)
    return tuple(each[:most] for each in values)


def embeddings(student: Outputs, teacher: Outputs, rows: Rows, *, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the embeddings [n, D] of both sides, of the rows that count, at most so many."""
    assert student.embedding is not None
    assert teacher.embedding is not None
    ours, theirs = counted(rows, student.embedding, teacher.embedding, most=most)
    return ours, theirs
