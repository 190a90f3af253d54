"""Teacher sources: where the fixed source network comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import Data
from kdnas.core.parts import Part
from kdnas.core.task import TaskSpec
from kdnas.errors import Problem, TeacherError
from kdnas.nn.teacher import Teacher as Teacher
from kdnas.registry import Registry


class TrainStudent(Protocol):
    """Trains a student family's member with cross entropy, on one `part` of the training samples or on all of them.

    It returns the module, which takes what the task's entrance gives, with its arch. Raises ConfigError, TeacherError.
    """

    def __call__(
        self,
        family: str,
        choices: Mapping[str, Any],
        training: Mapping[str, Any],
        notify: Callable[[str], None],
        part: Part | None = None,
    ) -> tuple[nn.Module, Arch]:
        """Return the trained module and its arch."""


@dataclass(frozen=True)
class EarlierStudent:
    """A trained student of an earlier run."""

    study: str
    network: nn.Module
    """Takes what the task's entrance gives."""
    arch: Arch | None
    """None of one that was cut out of a teacher."""
    task: TaskSpec
    """What it was trained to do."""
    class_names: tuple[str, ...]
    statistics: Mapping[str, Sequence[float]]
    """Of the data that it learnt from, by which the entrance normalises: a `Described`."""


def _no_runs(folder: Path, pick: str) -> EarlierStudent:
    raise TeacherError(Problem("teacher.run", "no runs can be read here"))


@dataclass(frozen=True)
class TeacherContext:
    """What a teacher source may use; both functions are handed down from the layers above."""

    data: Data
    data_root: Path
    device: torch.device
    train_student: TrainStudent
    notify: Callable[[str], None] = field(default=lambda line: None)
    earlier_student: Callable[[Path, str], EarlierStudent] = _no_runs
    asks_once: bool = False
    """Whether the study asks about each of the data's samples in one view alone, and about no others."""
    others: Data | None = None
    """Samples other than the study's, from which networks that are trained here learn; None: its own."""

    @property
    def learnt(self) -> Data:
        """The samples from which networks that are trained here learn, and by whose statistics they normalise."""
        return self.data if self.others is None else self.others


TEACHERS: Registry[Callable[..., Teacher]] = Registry("teacher", __name__, "context")
"""Members: `function(context: TeacherContext, *, options) -> Teacher`. Raise TeacherError."""
