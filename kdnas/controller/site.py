"""Where the workers of a run are, when that is not where its controller is: errands are done there.

One worker does errands before the search and after it. Meanwhile it is let go, since it has a device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from kdnas.controller.events import Observer
from kdnas.controller.waiting import work_off
from kdnas.core.measurement import Calibration
from kdnas.errors import RunError
from kdnas.executors import EXECUTORS, Executor, Finished
from kdnas.study.config import DISTIL, StudyConfig
from kdnas.workshop.elsewhere import Answer, DistilElsewhere, Errand, ErrandPlan

T = TypeVar("T")
LONGEST_S = 30 * 86_400.0
"""Of an errand: a supernet's training is one."""


class Site:
    """The place of the workers, while the run is held; `options` are those of every executor there."""

    def __init__(self, executor: str, options: Mapping[str, Any], observe: Observer):
        self.executor, self.options = executor, dict(options)
        self._observe = observe
        self._plan: ErrandPlan | None = None
        self._worker: Executor[Errand, Answer] | None = None

    def open(self, plan: ErrandPlan) -> DistilElsewhere:
        """Return the evaluator whose work is done there, opened by `plan`."""
        self._plan = plan
        return DistilElsewhere(plan.context, self.ask)

    def reopen(self, plan: ErrandPlan) -> None:
        """Let the next errands be done by whoever opens `plan`."""
        self.leave()
        self._plan = plan

    def ask(self, what: str, do: Callable[[Any], T], calibrations: Mapping[str, Calibration] = {}) -> T:
        """Have an errand done. Raises what it raised there, RunError where its worker died of it."""
        worker = self._worker = self._worker or self._started()
        worker.submit(what, Errand(what, do, calibrations))
        ended: list[Finished[Answer]] = []
        work_off(worker, lambda: False, ended.append, self._observe, passing=False)
        answer = ended[0].result
        if answer is None:
            raise RunError(f"{what}, on a worker, failed: {ended[0].failure}")
        if answer.error is not None:
            raise answer.error
        content: T = answer.content
        return content

    def leave(self) -> None:
        """Let the worker go that does errands: the next one starts another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _started(self) -> Executor[Errand, Answer]:
        assert self._plan is not None
        options = {**self.options, "workers": 1, "time_limit_s": LONGEST_S}
        worker: Executor[Errand, Answer] = EXECUTORS.build(self.executor, self._plan, **options)
        return worker


@contextlib.contextmanager
def site_of(config: StudyConfig, observe: Observer) -> Iterator[Site | None]:
    """Give the place of a study's workers until the context ends; None where that is this machine.

    Raises InputError, RunError where there is no such place.
    """
    section = config.executor
    kind = EXECUTORS.get(section.type)
    if not kind.elsewhere or config.evaluator.type != DISTIL:
        yield None
        return
    threads = section.options.get("threads", config.training.threads)
    stated = {**section.options, "workers": section.workers, "threads": 1 if threads == "auto" else threads}
    with kind.site(config.device, stated) as options:
        site = Site(section.type, {name: value for name, value in options.items() if name != "workers"}, observe)
        try:
            yield site
        finally:
            site.leave()
