"""The NNI executor against a real NNI experiment: its manager, its trials, its page."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdnas.errors import ConfigError, DataError, RunError, RunFolderError
from kdnas.executors import EXECUTORS, Executor
from kdnas.executors._scratch import Scratch
from kdnas.executors.nni import _shown
from kdnas.testing._jobs import Task, collect, die_at_start, die_at_the_first_start, make_evaluate, refuse_input


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    """What `true` returns once it returns something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := true():
            return answer
        time.sleep(0.1)
    raise AssertionError("it never came true")


def address(executor: Executor) -> str:
    return re.search(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", executor.notice).group()


def get(url: str) -> Any:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as response:
        content = response.read()
        return json.loads(content) if "json" in response.headers["Content-Type"] else content.decode()


def trials(executor: Executor) -> dict[str, dict[str, Any]]:
    """NNI's own record, by the key of the job."""
    found = {}
    for trial in get(f"{address(executor)}api/v1/nni/trial-jobs"):
        parameters = json.loads(trial["hyperParameters"][-1])["parameters"]
        metrics = [json.loads(json.loads(metric["data"])) for metric in trial.get("finalMetricData", [])]
        found[parameters["trial"]] = {"parameters": parameters, "status": trial["status"], "metrics": metrics}
    return found


def processes(session: int) -> list[int]:
    """Every living process of the session."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(rest[2]) == session and state != "Z":
                found.append(int(entry.name))
    return found


def sockets(pid: int) -> set[str]:
    """The sockets of a process, each by the name that it has in every process that holds it."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(entry.readlink()))
    return {name for name in found if name.startswith("socket:")}


def listening(pids: list[int]) -> list[str]:
    """The local address, in the kernel's hexadecimal, of every TCP socket that one of `pids` listens on."""
    inodes = {name.removeprefix("socket:[").removesuffix("]") for pid in pids for name in sockets(pid)}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [line[1] for line in lines if line[3] == "0A" and line[9] in inodes]


@pytest.fixture
def scratch(monkeypatch):
    """A temporary folder of a test's own; pytest's has too long a path for a socket."""
    with tempfile.TemporaryDirectory(prefix="k-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def build():
    """Executors of a test's own, closed at its end."""
    made: list[Executor] = []

    def start(evaluate: Callable[..., Any] = make_evaluate, **options: Any) -> Executor:
        made.append(EXECUTORS.build("nni", evaluate, **options))
        return made[-1]

    yield start
    for executor in made:
        executor.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One experiment for all tests that leave it as it was: starting it takes seconds."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        executor = EXECUTORS.build("nni", make_evaluate, workers=2, threads=1, time_limit_s=3.0, devices=2)
        yield executor
        manager = executor._experiment._process.pid
        executor.close()
    assert processes(manager) == []
    assert list(home.iterdir()) == []  # NNI would have made ~/nni-experiments


def test_results_come_back_and_nni_has_them(shared):
    arch = {"family": "resnet", "choices": {"stage1.depth": 2}}
    shared.submit("a", Task("square", x=3, arch=json.dumps(arch)))
    shared.submit("b", Task("square", x=4))
    assert (shared.free, shared.running) == (0, 2)
    with pytest.raises(RuntimeError, match="no worker is free"):
        shared.submit("c", Task("square", x=5))
    done = {finished.key: finished.result for finished in collect(shared, 2)}
    assert done["a"].seen["value"] == 9
    assert done["b"].seen["value"] == 16
    assert len({os.getpid(), done["a"].seen["pid"], done["b"].seen["pid"]}) == 3
    assert (shared.free, shared.running) == (2, 0)
    until(lambda: {trials(shared)[key]["status"] for key in "ab"} == {"SUCCEEDED"})
    recorded = trials(shared)
    assert recorded["a"]["metrics"] == [{"default": 0.3, "accuracy": 0.3, "macs": 5.0}]
    assert recorded["b"]["metrics"] == [{"default": 0.4, "accuracy": 0.4, "macs": 5.0}]
    assert recorded["a"]["parameters"] == {
        "trial": "a",
        "do": "square",
        "x": 3,
        "arch.family": "resnet",
        "arch.choices.stage1.depth": 2,
    }


def test_its_page_is_there_and_only_below_its_own_path(shared):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[0-9a-f]{32}/", address(shared))  # no path that reads as an option
    page = get(address(shared))
    assert "Neural Network Intelligence" in page
    script = re.search(r'src="(?:\./)?(static/js/main[^"]*\.js)"', page).group(1)
    assert len(get(address(shared) + script)) > 10_000
    profile = get(f"{address(shared)}api/v1/nni/experiment")
    assert profile["params"]["trialConcurrency"] == 2
    assert get(f"{address(shared)}api/v1/nni/experiments-info")[0]["status"] == "RUNNING"
    root = re.match(r"http://[^/]+/", address(shared)).group()
    for path in ("", "oview", "api/v1/nni/experiment"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(root + path)


def test_nothing_listens_beyond_the_loopback_address(shared):
    manager = shared._experiment._process.pid
    port = int(re.search(r":(\d+)/", shared.notice).group(1))
    assert listening(processes(manager)) == [f"0100007F:{port:04X}"]  # 127.0.0.1, least significant byte first


def test_a_trial_sees_the_controllers_world(shared):
    manager = shared._experiment._process.pid
    of_manager = sockets(manager)
    shared.submit("here", Task("where"))
    shared.submit("there", Task("where"))
    here, there = (finished.result.seen for finished in collect(shared, 2))
    of_manager |= sockets(manager)
    assert of_manager
    assert {here["CUDA_VISIBLE_DEVICES"], there["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
    for seen in (here, there):
        assert seen["cwd"] == str(Path.cwd())
        assert seen["OMP_NUM_THREADS"] == "1"
        assert seen["HOME"] == os.environ["HOME"]
        assert seen["KDNAS_NNI_MANAGER"] is None
        assert not of_manager & set(seen["files"])  # NNI leaks none of its own


def test_trials_do_not_hold_the_managers_sockets_where_many_files_are_open(build):
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(Path(os.devnull).open())
        executor = build(workers=1)
    manager = executor._experiment._process.pid
    executor.submit("where", Task("where"))
    (finished,) = collect(executor, 1)
    assert sockets(manager)
    assert not sockets(manager) & set(finished.result.seen["files"])


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (Task("trial error"), "loss became nan"),
        (Task("error"), "ZeroDivisionError: by zero"),
        (Task("die"), "was killed"),
        (Task("exit"), "its last words: out of luck"),
    ],
)
def test_a_failure_is_reported(shared, job, reason):
    shared.submit(reason, job)
    (finished,) = collect(shared, 1)
    assert (finished.key, finished.result) == (reason, None)
    assert reason in finished.failure
    assert (shared.free, shared.running) == (2, 0)
    status = "USER_CANCELED" if job.do == "die" else "FAILED"
    until(lambda: trials(shared)[reason]["status"] == status)


def test_a_time_limit_ends_a_trial_with_what_it_started(shared, tmp_path):
    shared.submit("long", Task("start a process", file=str(tmp_path / "pid")), time_limit_s=0.5)
    shared.submit("infeasible", Task("infeasible"))
    done = {finished.key: finished for finished in collect(shared, 2)}
    assert done["long"].failure == "stopped at the time limit of 0.5 s"
    assert done["infeasible"].result.seen["infeasible"] == "too large"
    until(lambda: not Path("/proc", (tmp_path / "pid").read_text()).exists())
    shared.submit("next", Task("square", x=2))
    assert collect(shared, 1)[0].result.seen["value"] == 4
    assert trials(shared)["infeasible"]["metrics"] == []


@pytest.mark.slow
def test_a_trial_can_be_stopped_and_none_added_from_the_page(shared, tmp_path):
    shared.submit("stopped", Task("start a process", file=str(tmp_path / "pid")), time_limit_s=60)
    until(lambda: shared.wait(0.1) or (tmp_path / "pid").exists())
    base = f"{address(shared)}api/v1/nni/trial-jobs"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    direct.open(
        urllib.request.Request(
            base, method="POST", data=b'{"trial": "added"}', headers={"Content-Type": "application/json"}
        ),
        timeout=30,
    ).close()
    identity = next(trial["trialJobId"] for trial in get(base) if trial["status"] == "RUNNING")
    direct.open(urllib.request.Request(f"{base}/{identity}", method="DELETE"), timeout=30).close()
    (finished,) = collect(shared, 1)
    assert finished.key == "stopped"
    assert "NNI's page" in finished.failure
    until(lambda: shared.wait(0.1) or trials(shared).get("added", {}).get("status") == "FAILED")
    shared.submit("after", Task("square", x=2))
    assert [done.key for done in collect(shared, 1)] == ["after"]


@pytest.mark.slow
def test_bad_input_at_the_start_reaches_the_user(build):
    executor = build(refuse_input)
    executor.submit("a", Task("square", x=1))
    with pytest.raises(DataError, match="the data went away"):
        collect(executor, 1)


@pytest.mark.slow
def test_a_full_disk_ends_the_run(build):
    executor = build()
    executor.submit("a", Task("full disk"))
    with pytest.raises(RunFolderError, match="the disk is full"):
        collect(executor, 1)


@pytest.mark.slow
def test_trials_that_never_start_end_the_run(build):
    executor = build(die_at_start)
    executor.submit("a", Task("square", x=1))
    with pytest.raises(RunError, match=r"3 trials in a row could not start; the last: .*no such library"):
        collect(executor, 1)


@pytest.mark.slow
def test_a_job_does_not_die_of_a_trial_that_could_not_start(build, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNAS_TEST_FIRST_START", str(tmp_path / "started"))
    executor = build(die_at_the_first_start)
    executor.submit("a", Task("square", x=3))
    (finished,) = collect(executor, 1)
    assert (finished.failure, finished.result.seen["value"]) == (None, 9)
    assert (tmp_path / "started").exists()


@pytest.mark.slow
def test_a_manager_that_is_stopped_ends_the_run(build):
    executor = build()
    executor.submit("a", Task("square", x=3))
    collect(executor, 1)
    os.kill(executor._experiment._process.pid, signal.SIGTERM)
    with pytest.raises(RunError, match="NNI's experiment was stopped"):
        collect(executor, 1)
    with pytest.raises(RunError, match="NNI's experiment was stopped"):
        executor.submit("b", Task("square", x=3))


@pytest.mark.slow
def test_close_kills_what_runs_and_keeps_the_files_that_were_asked_for(build, tmp_path):
    executor = build(folder=str(tmp_path / "nni"), workers=2)
    for key in "ab":
        executor.submit(key, Task("start a process", file=str(tmp_path / key)))
    until(lambda: executor.wait(0.1) or ((tmp_path / "a").exists() and (tmp_path / "b").exists()))
    manager, scratch = executor._experiment._process.pid, executor._scratch.path
    assert len(processes(manager)) >= 5  # the manager, two trials, and what each of them started
    started = time.monotonic()
    executor.close()
    executor.close()
    assert time.monotonic() - started < 5
    assert processes(manager) == []
    assert not scratch.exists()
    assert list((tmp_path / "nni").glob("kdnas-*/db/nni.sqlite"))


_CONTROLLER = """
import sys, time
sys.path.insert(0, {tests!r})
from kdnas.executors import EXECUTORS
from kdnas.testing._jobs import Task, make_evaluate
executor = EXECUTORS.build("nni", make_evaluate, workers=2)
executor.submit("a", Task("start a process", file={file!r}))
print(executor._experiment._process.pid, flush=True)
while True:
    executor.wait(0.2)
"""


@pytest.mark.slow
def test_nothing_outlives_a_controller_that_is_killed(tmp_path, repository, scratch):
    code = _CONTROLLER.format(tests=str(repository / "tests"), file=str(tmp_path / "pid"))
    controller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    manager = int(controller.stdout.readline())
    until((tmp_path / "pid").exists)
    assert len(processes(manager)) >= 3
    controller.kill()
    controller.wait()
    until(lambda: not processes(manager), 10)
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_trial_ends_with_its_controller_even_where_the_manager_was_killed_first(tmp_path, repository, scratch):
    code = _CONTROLLER.format(tests=str(repository / "tests"), file=str(tmp_path / "pid"))
    controller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    manager = int(controller.stdout.readline())
    until((tmp_path / "pid").exists)
    os.kill(controller.pid, signal.SIGSTOP)
    os.kill(manager, signal.SIGKILL)
    controller.kill()
    controller.wait()
    trial = Path("/proc", (tmp_path / "pid").read_text())
    until(lambda: not trial.exists(), 10)
    assert len(list(scratch.iterdir())) == 1  # nobody was left to remove it
    Scratch("kdnas-nni-", 70).remove()
    assert list(scratch.iterdir()) == []


def test_what_a_dead_controller_left_is_cleared_and_what_a_living_one_has_is_not(scratch):
    alive = Scratch("kdnas-nni-", 70)
    stale = Path(tempfile.mkdtemp(prefix="kdnas-nni-"))
    (stale / "environments").mkdir()
    another = Scratch("kdnas-nni-", 70)
    assert not stale.exists()
    assert alive.path.exists()
    assert alive.path.stat().st_mode & 0o077 == 0
    for scratch in (alive, another):
        scratch.remove()
        assert not scratch.path.exists()


def test_a_port_that_is_taken_is_told(build, scratch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"executor.port: 127.0.0.1:{port} cannot be listened on"):
            build(port=port)
    assert list(scratch.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_told(build, tmp_path, scratch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"executor.folder: .*file/nni cannot be used: Not a directory"):
        build(folder=str(tmp_path / "file" / "nni"))
    assert list(scratch.iterdir()) == []


def test_a_long_temporary_folder_is_no_place_for_a_socket(monkeypatch, tmp_path):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = Scratch("kdnas-nni-", 70)
    assert len(str(made.path / "socket")) < 108
    made.remove()


def test_a_manager_that_does_not_start_is_told_with_what_it_said(build, monkeypatch, scratch):
    monkeypatch.setenv("NODE_OPTIONS", "--no-such-option")
    with pytest.raises(RunError, match=r"NNI's experiment did not start: .*exit code 9.*no-such-option"):
        build()
    assert list(scratch.iterdir()) == []


def test_the_settings_of_a_job_are_shown_flat():
    job = {"arch": '{"choices": {"stage1.depth": 2}}', "recipe": {"training": {"epochs": 3}}, "seed": 5, "note": None}
    assert _shown(job) == {"arch.choices.stage1.depth": 2, "recipe.training.epochs": 3, "seed": 5}
    assert _shown({"text": "plain", "number": "12"}) == {"text": "plain", "number": "12"}
