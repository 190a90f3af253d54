"""The one loop that waits for workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kdnas.controller.events import Advanced, Note, Observer
from kdnas.executors import Executor, Finished, Outcome, Task

T = TypeVar("T", bound=Task)
R = TypeVar("R", bound=Outcome)
_POLL_S = 0.5


def work_off(
    executor: Executor[T, R],
    begin: Callable[[], bool],
    end: Callable[[Finished[R]], None],
    observe: Observer,
    *,
    passing: bool = True,
) -> None:
    """Keep `executor` busy until nothing is left; `observe` gets the lines that workers send meanwhile.

    `begin` submits a job, or returns False where there is none to begin now. It is called while there is room, again
    after each job that ended, which `end` takes in. `passing`: the lines are of no use once the work is done.
    """
    while True:
        while executor.free and begin():
            pass
        if not executor.running:
            return
        finished = executor.wait(_POLL_S)
        for line in executor.take_notes():
            observe(Note(line, passing=passing))
        for line in executor.take_notices():
            observe(Note(line))
        for key, done in executor.take_progress().items():
            observe(Advanced(key, done))
        for one in finished:
            end(one)
