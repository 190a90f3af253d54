"""The local executor against real processes that misbehave."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import descendants, parent_of, still_there

from kdnas.errors import RunError, RunFolderError
from kdnas.executors import EXECUTORS, Finished
from kdnas.executors._worker import visible_device
from kdnas.executors.local import _main_hidden
from kdnas.testing import ExecutorConformance, suites
from kdnas.testing._jobs import Seen, Task, collect, die_at_start, die_at_the_first_start, make_evaluate


class Talker:
    """An evaluate that says a passing line and how far it is while it works."""

    notify: Callable[[str], None]
    progress: Callable[[float], None]

    def __call__(self, job: Task) -> Seen:
        self.notify(f"working on {job.x}")
        self.progress(0.25)
        self.progress(0.5)
        return Seen({"value": job.x})


def make_talker() -> Talker:
    talker = Talker()
    talker.notify = lambda line: None
    talker.progress = lambda share: None
    return talker


globals().update(suites(ExecutorConformance, "nni", "ray"))  # which start more than processes: test_nni, test_ray


@pytest.fixture
def executor():
    """An executor of a test's own, for those that leave it broken or closed."""
    executor = EXECUTORS.build("local", make_evaluate, workers=2, threads=1, time_limit_s=3.0)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def shared():
    """One executor for all tests that leave it as it was: starting workers is what takes time."""
    executor = EXECUTORS.build("local", make_evaluate, workers=2, threads=1, time_limit_s=3.0)
    yield executor
    executor.close()


def test_workers_have_the_threads_they_are_given(shared):
    shared.submit("t", Task("threads"), time_limit_s=60)  # importing torch takes seconds
    assert collect(shared, 1)[0].result.seen == {"threads": 1}


def test_workers_that_never_start_end_the_run():
    executor = EXECUTORS.build("local", die_at_start, workers=1)
    with pytest.raises(RunError, match=r"could not start; the last: .*exit code 7"):
        collect(executor, 1)


def test_a_job_does_not_die_of_a_worker_that_could_not_start(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNAS_TEST_FIRST_START", str(tmp_path / "started"))
    executor = EXECUTORS.build("local", die_at_the_first_start, workers=1)
    executor.submit("a", Task("square", x=3))
    (finished,) = collect(executor, 1)
    executor.close()
    assert (finished.failure, finished.result.seen["value"]) == (None, 9)
    assert (tmp_path / "started").exists()


def test_a_job_does_not_die_of_a_worker_that_died_idle(executor):
    executor.submit("a", Task("square", x=1))
    executor.submit("b", Task("square", x=1))
    for finished in collect(executor, 2):
        os.kill(finished.result.seen["pid"], signal.SIGKILL)
    for worker in executor._workers:
        worker.process.join(30)
    executor.submit("c", Task("square", x=3))
    executor.submit("d", Task("square", x=3))
    assert [(done.failure, done.result.seen["value"]) for done in collect(executor, 2)] == [(None, 9)] * 2


def test_a_full_disk_ends_the_run_instead_of_failing_every_job(executor):
    executor.submit("a", Task("full disk"))
    with pytest.raises(RunFolderError, match="the disk is full"):
        collect(executor, 1)


def test_workers_neither_write_to_standard_output_nor_mind_ctrl_c(capfd):
    executor = EXECUTORS.build("local", make_evaluate, workers=1)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # all through its start
        os.kill(executor._workers[0].process.pid, signal.SIGINT)
        time.sleep(0.02)
    executor.submit("a", Task("print"))
    (finished,) = collect(executor, 1)
    executor.close()
    assert finished.failure is None
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err


@pytest.mark.parametrize(
    ("index", "visible", "name"),
    [(0, None, "0"), (1, "", "1"), (0, "2,3", "2"), (1, "2, 3", "3"), (1, "GPU-aa,GPU-bb", "GPU-bb")],
)
def test_a_worker_takes_one_of_the_devices_that_the_controller_may_use(index, visible, name):
    assert visible_device(index, visible) == name


def test_what_a_worker_says_reaches_the_controller_once():
    executor = EXECUTORS.build("local", make_talker)
    try:
        executor.submit("a", Task(x=3))
        finished = []
        while not finished:
            finished = executor.wait(60)
        assert finished == [Finished("a", result=Seen({"value": 3}))]
        assert executor.take_notes() == ["working on 3"]
        assert executor.take_notes() == []
        assert executor.take_progress() == {"a": 0.5}
        assert executor.take_progress() == {}
    finally:
        executor.close()


def test_a_users_function_may_load_data_with_workers_of_its_own(shared):
    shared.submit("a", Task("load with workers"), time_limit_s=60)
    (done,) = collect(shared, 1)
    assert done.result.seen == {"sum": 45}


def _started(file: Path) -> int:
    """Return the process that the worker which wrote its number to `file` started."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if file.is_file() and file.read_text() and (children := descendants(int(file.read_text()))):
            return children[0]
        time.sleep(0.05)
    raise AssertionError("it never started")


def test_what_a_workers_code_started_ends_with_it(tmp_path):
    executor = EXECUTORS.build("local", make_evaluate, workers=1, threads=1, time_limit_s=1.0)
    try:
        executor.submit("a", Task("start a process", file=str(tmp_path / "a")))
        child = _started(tmp_path / "a")
        (done,) = collect(executor, 1)
        assert "time limit" in done.failure
        assert not still_there([child], seconds=10)
        executor.submit("b", Task("start a process", file=str(tmp_path / "b")), time_limit_s=60)
        child = _started(tmp_path / "b")
    finally:
        executor.close()
    assert not still_there([child], seconds=10)


_CONTROLLER = """
import sys
from kdnas.testing._jobs import Task, make_evaluate
from kdnas.executors import EXECUTORS
if __name__ == "__main__":
    executor = EXECUTORS.build("local", make_evaluate, workers=1, threads=1, time_limit_s=60)
    executor.submit("a", Task("start a process", file={file!r}))
    executor.wait(60)
"""


def test_nothing_is_left_when_the_controller_is_killed(tmp_path):
    script = tmp_path / "controller.py"
    tests = str(Path(__file__).parent.parent)
    script.write_text(_CONTROLLER.format(tests=tests, file=str(tmp_path / "a")))
    controller = subprocess.Popen([sys.executable, str(script)])
    child = _started(tmp_path / "a")
    worker = int((tmp_path / "a").read_text())
    controller.kill()
    controller.wait()
    assert not still_there([worker], seconds=10)
    assert not still_there([child], seconds=10)


def stand_still():
    time.sleep(60)


def test_workers_that_never_get_ready_are_given_up_and_told(monkeypatch):
    monkeypatch.setattr("kdnas.executors._listening._START_NOTICE_S", 0.1)
    executor = EXECUTORS.build("local", stand_still, workers=1, start_limit_s=0.3)
    executor.submit("a", Task("square", x=1))
    with pytest.raises(RunError, match=r"3 workers in a row could not start; the last: it was not ready after 0\.3 s"):
        for _ in range(600):
            assert executor.wait(0.1) == []
    notices = executor.take_notices()
    assert any("has been opening data and teacher for" in notice for notice in notices)
    assert sum("another takes its place: it was not ready after 0.3 s" in notice for notice in notices) == 2
    assert executor.take_notices() == executor.take_notes() == []


class Drawn:
    """An evaluate that draws without a seed, as a user's code may."""

    def __call__(self, job: Task) -> Seen:
        return Seen(seen={"drawn": float(np.random.rand())})


def test_workers_draw_other_numbers(shared):
    executor = EXECUTORS.build("local", Drawn, workers=2, threads=1)
    for key in ("a", "b"):
        executor.submit(key, Task("square", x=1))
    first, second = (finished.result.seen["drawn"] for finished in collect(executor, 2))
    executor.close()
    assert first != second


def test_a_users_own_processes_can_be_ended_after_a_search(shared):
    own = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
    own.start()
    own.terminate()
    own.join(10)
    assert own.exitcode == -signal.SIGTERM


def test_searches_in_threads_leave_the_main_module_as_it_was():
    main = sys.modules["__main__"]

    def hide() -> None:
        for _ in range(200):
            with _main_hidden():
                pass

    threads = [threading.Thread(target=hide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.modules["__main__"] is main


def test_without_its_server_a_search_starts_workers_anew(shared):
    executor = EXECUTORS.build("local", make_evaluate, workers=1, threads=1)
    os.kill(parent_of(shared._workers[0].process.pid), signal.SIGKILL)
    executor.submit("a", Task("die"))
    (finished,) = collect(executor, 1)
    assert "worker process" in finished.failure
    executor.submit("b", Task("square", x=6))
    (finished,) = collect(executor, 1)
    executor.close()
    assert finished.result.seen["value"] == 36


class Surroundings:
    """An evaluate that tells where it runs, and writes to the standard error."""

    def __call__(self, job: Task) -> Seen:
        print("said by a worker", file=sys.stderr, flush=True)
        umask = os.umask(0o077)
        os.umask(umask)
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        own = {"umask": umask, "files": files, "niceness": os.getpriority(os.PRIO_PROCESS, 0)}
        return Seen(seen={"mark": os.environ.get("MARK"), "folder": Path.cwd(), "parent": os.getppid(), **own})


def test_a_worker_has_the_surroundings_of_the_moment_that_it_is_started_in(tmp_path, monkeypatch, capfd):
    """What workers are forked from lives on from the first search of a process to the last."""
    seen = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    masks = {"first": os.umask(0o022), "second": 0o027}
    for mark in ("first", "second"):
        if mark == "second":
            os.umask(masks[mark])
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit[0] - 1, limit[1]))
        (tmp_path / mark).mkdir()
        monkeypatch.chdir(tmp_path / mark)
        monkeypatch.setenv("MARK", mark)
        capfd.readouterr()
        executor = EXECUTORS.build("local", Surroundings, workers=1, threads=1)
        executor.submit("a", Task("square", x=1))
        (finished,) = collect(executor, 1)
        executor.close()
        assert "said by a worker" in capfd.readouterr().err
        seen.append(finished.result.seen)
    os.umask(masks["first"])
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert [(each["umask"], each["files"]) for each in seen] == [(0o022, limit[0]), (0o027, limit[0] - 1)]
    assert {each["niceness"] for each in seen} == {os.getpriority(os.PRIO_PROCESS, 0)}
    assert [(each["mark"], each["folder"].name) for each in seen] == [("first", "first"), ("second", "second")]
    assert seen[0]["parent"] == seen[1]["parent"] != os.getpid()


def test_a_fork_of_a_process_that_has_workers_starts_its_own_anew(shared):
    child = os.fork()
    if not child:
        code = 1
        try:
            executor = EXECUTORS.build("local", make_evaluate, workers=1, threads=1)
            executor.submit("a", Task("square", x=7))
            (finished,) = collect(executor, 1)
            executor.close()
            code = 0 if finished.result.seen["value"] == 49 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
