"""Jobs in packs, over an executor that is played and over real worker processes."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kdnas.controller.workers import Pack, PackedExecutor, PackedWorkplan, PackResult
from kdnas.errors import TrialError
from kdnas.executors import EXECUTORS, Executor, Finished
from kdnas.testing._jobs import Seen, Task


class Played(Executor[Pack, PackResult]):
    """Keeps what it is given until the test ends it."""

    def __init__(self, workers: int):
        self.workers = workers
        self.jobs: dict[str, tuple[tuple[Any, ...], float | None]] = {}
        self.ended: list[Finished[PackResult]] = []
        self.closed = False

    @property
    def free(self) -> int:
        return self.workers - len(self.jobs)

    @property
    def running(self) -> int:
        return len(self.jobs)

    def submit(self, key: str, job: Pack, *, time_limit_s: float | None = None) -> None:
        assert self.free
        self.jobs[key] = job.jobs, time_limit_s

    def wait(self, timeout_s: float) -> list[Finished[PackResult]]:
        ended, self.ended = self.ended, []
        return ended

    def close(self) -> None:
        self.closed = True

    def end(self, key: str, outcomes: Sequence[Any] | None = None, failure: str | None = None) -> None:
        del self.jobs[key]
        self.ended.append(Finished(key, None if outcomes is None else PackResult(tuple(outcomes)), failure))

    @property
    def sizes(self) -> list[int]:
        return sorted(len(jobs) for jobs, _ in self.jobs.values())


def packs(workers: int, size: int) -> tuple[PackedExecutor, Played]:
    inner = Played(workers)
    return PackedExecutor(inner, size, time_limit_s=10.0), inner


def fill(executor: PackedExecutor, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        executor.submit(str(number), Task(x=number))


def test_every_worker_gets_a_full_pack() -> None:
    executor, inner = packs(2, 4)
    assert (executor.free, executor.running) == (8, 0)
    fill(executor, 8)
    assert (executor.free, executor.running) == (0, 8)
    with pytest.raises(RuntimeError, match="no worker is free"):
        fill(executor, 1)
    assert executor.wait(0) == []
    assert inner.sizes == [4, 4]
    assert (executor.free, executor.running) == (0, 8)
    assert [limit for _, limit in inner.jobs.values()] == [40.0, 40.0]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [1, 1]), (5, [2, 3]), (7, [3, 4])])
def test_few_jobs_are_shared_out_evenly(count, sizes) -> None:
    executor, inner = packs(2, 4)
    fill(executor, count)
    executor.wait(0)
    assert inner.sizes == sizes


def test_outcomes_come_back_under_their_own_keys() -> None:
    executor, inner = packs(1, 3)
    fill(executor, 3)
    executor.wait(0)
    (key,) = inner.jobs
    inner.end(key, [Seen({"y": 0}), "loss became nan", Seen({"y": 2})])
    assert executor.wait(0) == [
        Finished("0", Seen({"y": 0})),
        Finished("1", failure="loss became nan"),
        Finished("2", Seen({"y": 2})),
    ]
    assert (executor.free, executor.running) == (3, 0)


def test_the_jobs_of_a_lost_pack_run_again_alone() -> None:
    executor, inner = packs(2, 2)
    fill(executor, 4)
    executor.wait(0)
    first, second = inner.jobs
    inner.end(first, failure="the worker process was killed by SIGKILL")
    assert executor.wait(0) == []
    assert (executor.free, executor.running) == (0, 4)
    executor.wait(0)
    assert inner.sizes == [1, 2]
    inner.end(second, [Seen(), Seen()])
    assert len(executor.wait(0)) == 2
    executor.wait(0)
    assert inner.sizes == [1, 1]  # the free worker takes the other one, and nothing beside it
    assert executor.free == 0
    one, other = inner.jobs
    inner.end(one, failure="the worker process was killed by SIGKILL")
    inner.end(other, [Seen({"y": 1})])
    ended = executor.wait(0)
    assert sorted((e.failure is None) for e in ended) == [False, True]
    assert {e.key for e in ended} == {"0", "1"}
    assert (executor.free, executor.running) == (4, 0)


def test_a_limit_of_a_jobs_own_counts() -> None:
    executor, inner = packs(1, 2)
    executor.submit("a", Task(), time_limit_s=3.0)
    executor.submit("b", Task())
    executor.wait(0)
    assert [limit for _, limit in inner.jobs.values()] == [13.0]


def test_close_closes_the_workers() -> None:
    executor, inner = packs(1, 2)
    executor.close()
    assert inner.closed


class Answers:
    """An evaluator as a worker has it."""

    def __call__(self, job: Task) -> Seen:
        if job.x == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.x < 0:
            raise TrialError("negative")
        return Seen({"value": job.x**2, "alone": True})

    def together(self, jobs: Sequence[Task]) -> list[Seen | TrialError]:
        if any(job.x == 13 for job in jobs):
            os.kill(os.getpid(), signal.SIGKILL)
        return [TrialError("negative") if job.x < 0 else Seen({"value": job.x**2, "alone": False}) for job in jobs]


def make_answers() -> Answers:
    return Answers()


@pytest.mark.slow
def test_real_workers_answer_packs_and_a_crash_costs_one_job() -> None:
    inner = EXECUTORS.build("local", PackedWorkplan(make_answers), workers=1, threads=1)  # type: ignore[arg-type]
    executor = PackedExecutor(inner, 4, time_limit_s=60.0)
    try:
        for key, x in {"a": 2, "b": -1, "c": 3, "crash": 13}.items():
            executor.submit(key, Task(x=x))
        ended: dict[str, Finished] = {}
        while len(ended) < 4:
            ended |= {finished.key: finished for finished in executor.wait(1.0)}
        assert ended["a"].result == Seen({"value": 4, "alone": True})
        assert ended["c"].result == Seen({"value": 9, "alone": True})
        assert ended["b"].failure == "negative"
        assert "SIGKILL" in str(ended["crash"].failure)
        executor.submit("d", Task(x=5))
        executor.submit("e", Task(x=6))
        ended = {}
        while len(ended) < 2:
            ended |= {finished.key: finished for finished in executor.wait(1.0)}
        assert [ended[key].result for key in "de"] == [
            Seen({"value": 25, "alone": False}),
            Seen({"value": 36, "alone": False}),
        ]
    finally:
        executor.close()


def scores(run: Path) -> dict[str, tuple[str, str]]:
    with (run / "trials.csv").open() as file:
        return {row["arch_id"]: (row["state"], row["accuracy"]) for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_search_in_packs_gives_the_same_scores(tiny_study, tmp_path, kdnas) -> None:
    for size in (1, 3):
        run = tmp_path / f"run{size}"
        done = kdnas("search", tiny_study, "--out", run, "--set", f"executor.per_device={size}", timeout=280)
        assert done.code == 0, done.stderr
    assert len(scores(tmp_path / "run1")) == 4
    assert scores(tmp_path / "run3") == scores(tmp_path / "run1")


@pytest.mark.gpu
def test_a_search_chooses_the_size_of_its_packs(tiny_study, tmp_path, kdnas) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    options = ("--device", "cuda", "--set", "executor.per_device=auto")
    done = kdnas("search", tiny_study, "--out", tmp_path / "run", *options, timeout=120)
    assert done.code == 0, done.stderr
    assert {state for state, _ in scores(tmp_path / "run").values()} == {"complete"}


def test_how_far_a_pack_is_every_job_of_it_is() -> None:
    executor, inner = packs(workers=1, size=2)
    fill(executor, 2)
    executor.wait(0)
    (pack,) = executor._sent
    inner.take_progress = lambda: {pack: 0.5, "of a pack that has ended": 1.0}  # type: ignore[method-assign]
    keys = [job.key for job in executor._sent[pack]]
    assert len(keys) == 2
    assert executor.take_progress() == dict.fromkeys(keys, 0.5)
