"""The error tree of kdnas, drawn whole.

KdnasError
├── InputError            exit 2: the user can mend it; carries every problem found, not just the first
│   ├── ConfigError         a study, space, recipe or command-line value
│   ├── DataError           a data set that is missing, damaged or unusable
│   ├── TeacherError        a teacher that cannot be loaded or does not fit the data
│   └── RunFolderError      a run folder that is foreign, changed, damaged, locked or not writable
│       └── CheckpointError   the checkpoint of an unfinished training that does not continue it
└── RunError              exit 1: the work itself failed
    ├── TrialError          one trial failed; recorded with its reason, the search goes on
    └── ExportError         an export that does not reproduce the student's outputs
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where it stands, what is wrong, what is allowed."""

    where: str
    what: str
    allowed: str = ""

    def __str__(self) -> str:
        allowed = f" (allowed: {self.allowed})" if self.allowed else ""
        where = f"{self.where}: " if self.where else ""
        return f"{where}{self.what}{allowed}"


class KdnasError(Exception):
    """Anything kdnas raises on purpose. `exit_code` is the process's exit status."""

    exit_code = 1


class InputError(KdnasError):
    """Bad input. Built from one message or from all problems found at once."""

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[Problem]):
        if isinstance(problems, str):
            problems = (Problem("", problems),)
        elif isinstance(problems, Problem):
            problems = (problems,)
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class ConfigError(InputError):
    """A study, a search space, a recipe or a command-line value is wrong."""


class DataError(InputError):
    """A data set is missing, damaged or unusable."""


class TeacherError(InputError):
    """A teacher cannot be loaded safely or does not fit the data."""


class RunFolderError(InputError):
    """A run folder is foreign, changed, damaged, locked or not writable."""


class CheckpointError(RunFolderError):
    """The checkpoint of an unfinished training is damaged, or another training's: it can only start anew."""


class RunError(KdnasError):
    """The work itself failed, though the input was sound."""


class TrialError(RunError):
    """One trial failed. `str(error)` is the reason that is recorded."""


class ExportError(RunError):
    """An export did not reproduce the student's outputs; nothing was written."""
