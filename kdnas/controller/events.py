"""Events of a running search, for views, trackers and the Python API."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.core.words import printable
from kdnas.record.front import measured_values
from kdnas.record.records import Repeat, RunRecord, TrialRecord


@dataclass(frozen=True)
class Note:
    """A line worth showing, such as a stage of the preparation; a `passing` one is soon followed by the next."""

    text: str
    passing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))  # it may quote a user's module


@dataclass(frozen=True)
class Ready:
    """Data, teacher and record are open; `resumed` when the run already held trials."""

    run: RunRecord
    resumed: bool
    workers: int | None
    """None: as many as the executor finds room for."""


@dataclass(frozen=True)
class TrialStarted:
    """A student went to a worker, to be trained to `fidelity`."""

    number: int
    arch: Arch
    fidelity: Fidelity


@dataclass(frozen=True)
class Advanced:
    """How far a training is: the share `done`, in [0, 1]. `key` is its trial's number, or "number:seed"."""

    key: str
    done: float


@dataclass(frozen=True)
class TrialEnded:
    """A trial was closed. `run` is the record with it."""

    run: RunRecord
    trial: TrialRecord


@dataclass(frozen=True)
class SearchEnded:
    """No further student will be proposed, for the `reason` given."""

    run: RunRecord
    reason: str
    finalists: int
    retrainings: int
    """Retrainings of finalists still to do."""


@dataclass(frozen=True)
class RepeatStarted:
    """A retraining of a finalist went to a worker."""

    number: int
    seed: int
    arch: Arch
    fidelity: Fidelity

    @property
    def key(self) -> str:
        """As `Advanced` has it."""
        return f"{self.number}:{self.seed}"


@dataclass(frozen=True)
class RepeatEnded:
    """One retraining of a finalist ended; `repeat` is None when it failed for `failure`."""

    number: int
    repeat: Repeat | None
    failure: str = ""
    seed: int | None = None
    """None where `repeat` has it."""
    again: bool = False
    """Whether one that failed is tried again."""

    @property
    def key(self) -> str:
        """As `Advanced` has it."""
        return f"{self.number}:{self.repeat.seed if self.repeat is not None else self.seed}"


@dataclass(frozen=True)
class StudyEnded:
    """Everything is done and recorded; `new_trials` and `new_repeats` are what this call added."""

    run: RunRecord
    new_trials: int
    new_repeats: int


Event = Note | Ready | TrialStarted | Advanced | TrialEnded | SearchEnded | RepeatStarted | RepeatEnded | StudyEnded
Observer = Callable[[Event], None]


def notes_to(notify: Callable[[str], None], *, passing: bool = True) -> Observer:
    """Return an observer that passes the texts of notes on to `notify`, those of `passing` ones where that is asked."""
    return lambda event: notify(event.text) if isinstance(event, Note) and (passing or not event.passing) else None


def plain_event(event: Event) -> dict[str, Any]:
    """Return an event as data for JSON: its kind as `event`, and its fields but `run`, which the run folder holds."""
    known = {field.name: _plain(getattr(event, field.name)) for field in fields(event) if field.name != "run"}
    plain: dict[str, Any] = finite({"event": type(event).__name__, **known})
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, TrialRecord):
        return {
            "number": value.number,
            "arch_id": value.arch.arch_id,
            "state": value.state,
            "fidelity": value.fidelity.as_dict(),
            "values": measured_values(value),
            "reason": value.reason,
            "train_seconds": value.train_seconds,
        }
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def finite(value: Any) -> Any:
    """Return plain data with null for each number that JSON cannot write."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
