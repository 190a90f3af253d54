"""Numerics: losses are computed in float32, whatever precision the networks run in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from kdnas.nn.rows import Rows
from kdnas.nn.taps import Outputs

Self = TypeVar("Self")
Forward = Callable[[Self, Outputs, Outputs, Rows], Tensor]


def in_float32(forward: Forward[Self]) -> Forward[Self]:
    """Return a loss's `forward` that runs in float32 with autocast off, and never lets a gradient into the teacher.

    Logits divided by a temperature, and pair distances, lose their meaning at bfloat16's three digits.
    """

    @functools.wraps(forward)
    def wrapped(self: Self, student: Outputs, teacher: Outputs, rows: Rows) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            return forward(self, student.float(), teacher.float().detach(), rows.float())

    return wrapped


_LARGEST = 1e15
"""Differences beyond it count as it: their squares would leave float32's range."""


def squared(differences: Tensor) -> Tensor:
    """Return the squares, all of them finite."""
    return differences.clamp(-_LARGEST, _LARGEST).square()
