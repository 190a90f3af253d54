"""Executors: who runs evaluations, and where."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from kdnas.core.words import printable
from kdnas.registry import Registry


class Task(Protocol):
    """What an executor carries to a worker: picklable, with a plain form that can be shown."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form."""


class Outcome(Protocol):
    """What a worker answers: picklable, with numbers that can be shown."""

    @property
    def values(self) -> Mapping[str, float]:
        """Every quantity that it states, by name."""


T = TypeVar("T", bound=Task)
R = TypeVar("R", bound=Outcome)
Evaluate = Callable[[T], R]
"""Takes a job and returns its result. Raises TrialError (or anything) when it fails.

One that has an attribute `notify` may be given a function there that shows the user a passing line; one that has
`progress`, a function that takes the share of the job that is done, in [0, 1].
"""


@dataclass(frozen=True)
class Finished(Generic[R]):
    """A job that ended: its `result`, or the `failure` reason, which is one line that can be shown anywhere."""

    key: str
    result: R | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        if self.failure is not None:
            object.__setattr__(self, "failure", printable(self.failure) or "no reason was given")


class Executor(ABC, Generic[T, R]):
    """Runs jobs. `make_evaluate` is a picklable callable that each worker calls once to get its `Evaluate`."""

    elsewhere: ClassVar[bool] = False
    """Whether its workers may have data, teachers and devices that the controller has not."""

    def __init__(self, make_evaluate: Callable[[], Evaluate[T, R]]):
        self._make_evaluate = make_evaluate

    @classmethod
    @contextlib.contextmanager
    def site(cls, device: str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Be where the workers are until the context ends: gives the options of several executors there, in turn.

        `options` are those of the first, as a study and the run state them, and `device` is what students train on.
        """
        yield dict(options)

    @property
    def notice(self) -> str:
        """What the user should know once it runs, such as an address to watch it at; empty: nothing."""
        return ""

    @property
    @abstractmethod
    def free(self) -> int:
        """The number of jobs that can be submitted now without queueing."""

    @property
    @abstractmethod
    def running(self) -> int:
        """The number of jobs submitted and not yet finished."""

    @abstractmethod
    def submit(self, key: str, job: T, *, time_limit_s: float | None = None) -> None:
        """Start `job`. Its end is reported once by `wait` under `key`. A limit of None is the executor's own."""

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Finished[R]]:
        """Return the jobs that finished, waiting up to `timeout_s` for the first."""

    def take_notes(self) -> list[str]:
        """Return the passing lines that workers sent since the last call."""
        return []

    def take_notices(self) -> list[str]:
        """Return what the user should know of the workers since the last call: one that was lost, or does not begin."""
        return []

    def take_progress(self) -> dict[str, float]:
        """Return how far running jobs have come since the last call, by key: shares in [0, 1] where reported."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Stop every worker at once, dropping what runs. Idempotent."""


EXECUTORS: Registry[type[Executor[Any, Any]]] = Registry("executor", __name__, Executor)
"""Members: Executor classes, `(make_evaluate, *, workers, time_limit_s, ...)`.

The run sets `workers`, `threads` (of each worker), `time_limit_s` and `devices` (CUDA devices, 0 on a CPU), as far as
the member has them; a study sets the other options, and may set `threads`. A member whose `workers` is None unless
stated finds out itself how many it has room for.
"""
