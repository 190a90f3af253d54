"""Workers that compute the teacher's outputs ahead while the controller trains a supernet.

That training asks the teacher about view after view of the samples, which may take as long as the training itself, and
the cores that the run's workers will have are idle meanwhile. What companions compute is in the cache that all share
(`kdnas.training.teacher_cache`): the training reads what it would have computed, and waits for nobody who dies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdnas.controller.site import LONGEST_S
from kdnas.executors import EXECUTORS, Executor
from kdnas.workshop.elsewhere import Answer, Errand, ErrandPlan, fill_ahead
from kdnas.workshop.evaluators import EvaluatorContext


@contextlib.contextmanager
def companions(context: EvaluatorContext, *, count: int, threads: int) -> Iterator[None]:
    """Have `count` processes of so many `threads` compute ahead until the context ends; they open what workers do."""
    options = {"workers": count, "threads": threads, "time_limit_s": LONGEST_S}
    crew: Executor[Errand, Answer] = EXECUTORS.build("local", ErrandPlan(context), **options)
    try:
        for number in range(count):
            crew.submit(f"companion {number}", Errand("computing the teacher's outputs ahead", fill_ahead))
        yield
    finally:
        crew.close()
