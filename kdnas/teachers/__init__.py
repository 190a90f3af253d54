"""Teacher sources: where the fixed source network comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import Data
from kdnas.nn.teacher import Teacher as Teacher
from kdnas.registry import Registry


@dataclass(frozen=True)
class TeacherContext:
    """What a teacher source may use.

    `train_student(family, choices, training, notify)` trains a student family's member with cross entropy and returns
    the module taking what the task's entrance gives, with its arch; it is handed down from the training layer.
    """

    data: Data
    data_root: Path
    device: torch.device
    train_student: Callable[[str, Mapping[str, Any], Mapping[str, Any], Callable[[str], None]], tuple[nn.Module, Arch]]
    notify: Callable[[str], None] = field(default=lambda line: None)


TEACHERS: Registry[Callable[..., Teacher]] = Registry("teacher", __name__, "context")
"""Members: `function(context: TeacherContext, *, options) -> Teacher`. Raise TeacherError."""
