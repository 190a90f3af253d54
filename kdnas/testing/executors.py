"""What every executor keeps, against worker processes that misbehave."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kdnas.errors import DataError
from kdnas.executors import EXECUTORS, Executor
from kdnas.testing._jobs import Seen, Task, collect, make_evaluate, refuse_input
from kdnas.testing._member import MemberConformance

TIME_LIMIT_S = 3.0


class ExecutorConformance(MemberConformance):
    """The suite of executors that run each job in a process of its own or a worker's."""

    registry = EXECUTORS

    def started(self, make: Callable[[], Any] = make_evaluate, workers: int = 2) -> Executor[Task, Seen]:
        """Return the executor with `workers` workers, as far as their number can be set."""
        offered = {"workers": workers, "threads": 1, "time_limit_s": TIME_LIMIT_S, "devices": 0}
        known = EXECUTORS.options(self._member).model_fields
        executor: Executor[Task, Seen] = self.build(make, **{k: v for k, v in offered.items() if k in known})
        return executor

    @pytest.fixture
    def executor(self) -> Iterator[Executor[Task, Seen]]:
        """An executor with two workers."""
        executor = self.started()
        yield executor
        executor.close()

    def test_results_come_back_under_their_keys(self, executor: Executor[Task, Seen]) -> None:
        executor.submit("a", Task("square", x=3))
        executor.submit("b", Task("square", x=4))
        assert (executor.free, executor.running) == (0, 2)
        with pytest.raises(RuntimeError, match="no worker is free"):
            executor.submit("c", Task("square", x=5))
        done = {finished.key: finished.result for finished in collect(executor, 2)}
        assert {key: result and result.seen["value"] for key, result in done.items()} == {"a": 9, "b": 16}
        assert (executor.free, executor.running) == (2, 0)
        assert os.getpid() not in {result and result.seen["pid"] for result in done.values()}

    def test_a_failure_is_reported_and_the_workers_work_on(self, executor: Executor[Task, Seen]) -> None:
        for job, reason in (
            (Task("trial error"), "loss became nan"),
            (Task("error"), "ZeroDivisionError: by zero"),
            (Task("die"), "SIGKILL"),
            (Task("exit"), "exit code 3"),
            (Task("sleep", seconds=60), "time limit of 3 s"),
        ):
            executor.submit("bad", job)
            (finished,) = collect(executor, 1)
            assert finished.key == "bad"
            assert finished.result is None
            assert reason in (finished.failure or "")
        for key in ("x", "y"):
            executor.submit(key, Task("square", x=2))
        assert {done.result and done.result.seen["value"] for done in collect(executor, 2)} == {4}

    def test_a_job_may_have_its_own_time_limit(self, executor: Executor[Task, Seen]) -> None:
        executor.submit("long", Task("sleep", seconds=TIME_LIMIT_S + 0.5), time_limit_s=60)
        executor.submit("short", Task("sleep", seconds=60), time_limit_s=0.5)
        done = {finished.key: finished.failure for finished in collect(executor, 2)}
        assert done == {"short": "stopped at the time limit of 0.5 s", "long": None}

    def test_bad_input_at_the_start_reaches_the_user(self) -> None:
        executor = self.started(refuse_input, workers=1)
        try:
            with pytest.raises(DataError, match="the data went away"):
                collect(executor, 1)
        finally:
            executor.close()

    def test_close_stops_what_runs_and_may_be_called_again(self, executor: Executor[Task, Seen]) -> None:
        executor.submit("a", Task("square", x=1))
        (finished,) = collect(executor, 1)
        assert finished.result is not None
        executor.submit("b", Task("sleep", seconds=60))
        executor.submit("c", Task("sleep", seconds=60))
        started = time.monotonic()
        executor.close()
        executor.close()
        assert time.monotonic() - started < 5
        with pytest.raises(ProcessLookupError):
            os.kill(finished.result.seen["pid"], 0)
