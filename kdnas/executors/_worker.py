"""What a worker process does whoever started it: take threads and one of the devices, open, answer a job.

It imports torch only where a job or its evaluator does: that takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

from kdnas.core.words import printable
from kdnas.errors import InputError, RunError, RunFolderError, TrialError
from kdnas.executors import Evaluate
from kdnas.faults import reach
from kdnas.user_code import blamed

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Answer = tuple[Literal["result", "failure", "crash", "broken"], Any]
"""The `result`; the reason of a `failure`, or of a `crash` that nobody foresaw; the error that would meet every
job, and so is the run's: `broken`."""


def answer(evaluate: Evaluate[Any, Any], job: Any) -> Answer:
    """Return what came of `job`. Raises nothing: whatever a student does, the search goes on."""
    try:
        reach("trial")
        result = evaluate(job)
        reach("answer")
        return "result", result
    except RunFolderError as error:  # a full disk is no student's fault, and meets every job
        return "broken", error
    except (TrialError, InputError) as error:
        return "failure", printable(str(error))
    except MemoryError:
        return "failure", "out of memory"
    except BaseException as error:  # `exit()` in a user's function too
        return "crash", printable(blamed(error) or _failure_in_words(error))


def opened(
    controller: Connection, make_evaluate: Callable[[], Evaluate[Any, Any]], threads: int
) -> Evaluate[Any, Any] | None:
    """Return what answers jobs, and report to the controller that it is ready; None once the reason why not is sent.

    It computes with so many threads, and its lines and its progress go to the controller.
    """
    limit_threads(threads)
    try:
        evaluate = make_evaluate()
    except (InputError, RunError) as error:
        controller.send(("broken", error))
        return None
    limit_threads(threads)  # of what it has imported
    if hasattr(evaluate, "notify"):
        evaluate.notify = lambda line: controller.send(("note", line))
    if hasattr(evaluate, "progress"):
        evaluate.progress = lambda share: controller.send(("progress", share))
    controller.send(("ready", None))
    return evaluate


def _failure_in_words(error: BaseException) -> str:
    """Return the message of any error, whose `__str__` may fail as well."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def visible_device(index: int, visible: str | None) -> str:
    """Return how CUDA_VISIBLE_DEVICES names device `index` of those that the controller may use."""
    names = [name.strip() for name in visible.split(",")] if visible else []
    return names[index] if index < len(names) else str(index)


def limit_threads(threads: int) -> None:
    """Have this process compute with so many threads: torch, and whatever is imported from now on."""
    for variable in _THREADS:
        os.environ[variable] = str(threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def uses_cuda() -> bool:
    """Return whether this process has begun to use a CUDA device."""
    if "torch" not in sys.modules:
        return False
    import torch

    return torch.cuda.is_initialized()
