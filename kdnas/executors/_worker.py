"""What a worker process does whoever started it: take one of the devices, answer one job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kdnas.errors import InputError, RunFolderError, TrialError
from kdnas.executors import Evaluate

Answer = tuple[Literal["result", "failure", "crash", "broken"], Any]
"""The plain `result`; the reason of a `failure`, or of a `crash` that nobody foresaw; the error that would meet every
job, and so is the run's: `broken`."""


def answer(evaluate: Evaluate, job: Mapping[str, Any]) -> Answer:
    """Return what came of `job`. Raises nothing: whatever a student does, the search goes on."""
    try:
        return "result", evaluate(job)
    except RunFolderError as error:  # a full disk is no student's fault, and meets every job
        return "broken", error
    except (TrialError, InputError) as error:
        return "failure", str(error)
    except MemoryError:
        return "failure", "out of memory"
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"


def visible_device(index: int, visible: str | None) -> str:
    """Return how CUDA_VISIBLE_DEVICES names device `index` of those that the controller may use."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    return names[index] if index < len(names) else str(index)
