"""The Ray executor against a real cluster on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import parent_of

from kdnas.errors import ConfigError, RunError
from kdnas.executors import EXECUTORS
from kdnas.executors._ray_cluster import Cluster, Needs
from kdnas.executors._ray_slot import Slot, Surroundings
from kdnas.testing import ExecutorConformance
from kdnas.testing._jobs import Seen, Task, collect, die_at_start, make_evaluate

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'kdnas[ray]'")


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all tests that leave it as it was: starting it takes 5 to 10 s."""
    cluster = Cluster("local", workers=3, needs=Needs(1.0, 0.0, {}))
    yield cluster
    head = cluster._head.pid
    cluster.close()
    assert _session(head) == []


@pytest.fixture
def build(cluster):
    """Executors of a test's own on the cluster, closed at its end."""
    made = []

    def start(evaluate=make_evaluate, **options):
        made.append(EXECUTORS.build("ray", evaluate, address=cluster.address, **options))
        return made[-1]

    yield start
    for executor in made:
        executor.close()


def _session(session: int) -> list[int]:
    """Every living process of the session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(rest[2]) == session and state != "Z":
                found.append(int(entry.name))
    return found


def _until(true, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := true():
            return answer
        time.sleep(0.1)
    raise AssertionError("it never came true")


def _listening(pids: list[int]) -> set[str]:
    """The local addresses, in the kernel's hexadecimal, of every TCP socket that one of `pids` listens on."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


@needs_ray
class TestRay(ExecutorConformance):
    member = "ray"

    @pytest.fixture(autouse=True)
    def _on_the_cluster(self, cluster, monkeypatch):
        monkeypatch.setattr(type(self), "options", {"address": cluster.address})


@needs_ray
def test_a_lost_actor_costs_its_job_a_second_run_and_no_failure(build, tmp_path):
    executor = build(workers=1, time_limit_s=60)
    executor.submit("a", Task("square", x=1))
    (first,) = collect(executor, 1)
    executor.submit("b", Task("sleep", seconds=1.5))
    executor.wait(0.5)
    server = parent_of(first.result.seen["pid"])  # what workers are forked from, which the actor has started
    os.kill(parent_of(server), signal.SIGKILL)
    (second,) = collect(executor, 1)
    assert (second.key, second.failure) == ("b", None)
    assert second.result.seen["pid"] != first.result.seen["pid"]
    assert "was lost" in executor.take_notices()[0]
    assert executor.running == 0


def kill(executor, *keys):
    import ray

    for slot in executor._slots:
        if slot.task is not None and slot.task.key in keys:
            ray.kill(slot.actor)


def running(executor):
    return {slot.task.key for slot in executor._slots if slot.task is not None}


@pytest.fixture
def two_run(build, monkeypatch):
    """Jobs, the first of which is said to fill memory, beside each other; a killed worker was stopped for memory."""
    import ray

    get = ray.get

    def told(call):
        try:
            return get(call)
        except ray.exceptions.ActorDiedError as error:
            raise ray.exceptions.OutOfMemoryError("killed due to the node running low on memory") from error

    monkeypatch.setattr("ray.get", told)

    def start(hog_s: float):
        executor = build(workers=2)
        for key, seconds in (("hog", hog_s), ("beside", 2)):
            while not executor.free:
                executor.wait(0.1)
            executor.submit(key, Task("sleep", seconds=seconds))
        while len(running(executor)) < 2:
            executor.wait(0.1)
        return executor

    return start


@needs_ray
def test_what_ray_stops_for_memory_runs_again_alone_and_fails_the_second_time(two_run):
    executor, finished = two_run(600), []
    kill(executor, "hog", "beside")
    while len(finished) < 2:
        finished += executor.wait(0.1)
        if all(slot.task is None or slot.task.outgrown for slot in executor._slots):
            assert len(running(executor)) < 2
            kill(executor, "hog")
    ended = {one.key: one for one in finished}
    assert "out of memory on its machine: killed due to" in ended["hog"].failure
    assert ended["beside"].result is not None


@needs_ray
def test_who_is_stopped_beside_a_job_that_fills_memory_waits_for_its_end(two_run):
    executor, finished = two_run(20), []
    kill(executor, "beside")
    while not finished:
        finished += executor.wait(0.1)
        alone = [slot.task for slot in executor._slots if slot.task is not None and slot.task.outgrown]
        assert not alone or "hog" not in running(executor)
        assert executor.free == 0  # nothing new begins on the only host
    finished += collect(executor, 2 - len(finished))
    assert [(one.key, one.failure) for one in finished] == [("hog", None), ("beside", None)]
    assert executor.free == 2


@needs_ray
@pytest.mark.slow
def test_a_job_with_which_workers_are_lost_again_and_again_is_given_up(build):
    executor = build(lose_the_actor, workers=1)
    executor.submit("a", Task("square", x=1))
    (finished,) = collect(executor, 1)
    assert "3 workers were lost while they worked on it" in finished.failure


@needs_ray
@pytest.mark.slow
def test_a_job_whose_workers_fall_silent_again_and_again_is_given_up(build):
    executor, finished = build(workers=1), []
    executor.submit("a", Task("sleep", seconds=600))
    while not finished:
        (slot,) = executor._slots
        if slot.task is not None and slot.call is not None:
            slot.called -= 1000
        finished = executor.wait(0.5)
    assert "3 workers were lost while they worked on it: it has sent nothing for" in finished[0].failure
    assert executor.running == 0


def lose_the_actor():
    def answer(job: Task) -> Seen:
        actor = multiprocessing.parent_process()
        assert actor is not None
        assert actor.pid is not None
        os.kill(actor.pid, signal.SIGKILL)
        time.sleep(60)
        raise AssertionError

    return answer


@needs_ray
@pytest.mark.slow
def test_workers_that_find_no_node_wait_for_one_and_the_others_work(build):
    executor = build(workers=2, cpus=2.0)
    assert "1 worker on 1 machine, 1 waiting for one" in executor.notice
    assert (executor.free, executor.running) == (1, 0)
    executor.submit("a", Task("square", x=2))
    assert collect(executor, 1)[0].result.seen["value"] == 4


@needs_ray
def test_as_many_workers_as_the_cluster_has_room_for(build):
    assert build(cpus=1.5).free == 2


@needs_ray
@pytest.mark.slow
def test_workers_that_never_start_end_the_run(build):
    executor = build(die_at_start, workers=1)
    with pytest.raises(RunError, match=r"could not start; the last: .*exit code 7"):
        collect(executor, 1)


@needs_ray
def test_nothing_listens_beyond_the_loopback_address(cluster, build):
    build(workers=1)
    everyone = _session(cluster._head.pid)
    assert len(everyone) >= 4
    # 127.0.0.1 and the same as IPv6 writes it, least significant byte first.
    assert _listening([*everyone, os.getpid()]) <= {"0100007F", "0000000000000000FFFF00000100007F"}


@needs_ray
def test_the_controllers_answer_to_sigterm_stays(cluster):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


_TWO_CLUSTERS = """
import os
from kdnas.executors._ray_cluster import Cluster, Needs
if __name__ == "__main__":
    for _ in range(2):
        Cluster("local", workers=1, needs=Needs(1.0, 0.0, {})).close()
        del os.environ["RAY_AUTH_TOKEN"], os.environ["RAY_AUTH_MODE"]
"""


@needs_ray
@pytest.mark.slow
def test_a_program_that_used_ray_before_reaches_the_next_cluster():
    subprocess.run([sys.executable, "-c", _TWO_CLUSTERS], check=True, timeout=120)


_CONTROLLER = """
import sys
from kdnas.executors import EXECUTORS
from kdnas.testing._jobs import Task, make_evaluate
executor = EXECUTORS.build("ray", make_evaluate, workers=1, address="local")
executor.submit("a", Task("start a process", file={file!r}))
print(executor._cluster._head.pid, flush=True)
while True:
    executor.wait(0.2)
"""


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_controller(tmp_path, number):
    code = _CONTROLLER.format(file=str(tmp_path / "pid"))
    controller = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    head = int(controller.stdout.readline())
    scratch = Path(next(line for line in _scratches(head)))
    _until((tmp_path / "pid").exists)
    worker = Path("/proc", _until((tmp_path / "pid").read_text))
    controller.send_signal(number)
    controller.wait()
    _until(lambda: not _session(head) and not worker.exists() and not scratch.exists(), 15)


def _scratches(head: int) -> list[str]:
    """Return the folder that the cluster's process has."""
    links = [str(entry.readlink()) for entry in Path(f"/proc/{head}/fd").iterdir() if entry.exists()]
    return [str(Path(link).parent) for link in links if "kdnas-ray-" in link and link.endswith("controller")]


_NO_CLUSTER = """
import functools
import ray._private.services as services
from kdnas.executors._ray_cluster import *
services.find_gcs_addresses = functools.cache(lambda: set())  # those of other programs on this machine
Cluster('auto', workers=1, needs=Needs(1.0, 0.0, {}))
"""


@needs_ray
@pytest.mark.slow
def test_no_such_cluster_is_told(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_TMPDIR"] = str(tmp_path)
    code = [sys.executable, "-c", _NO_CLUSTER]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert "ConfigError: executor.address: auto: " in done.stderr.splitlines()[-1]


@needs_ray
def test_what_a_slow_cluster_is_waited_for_is_said(monkeypatch, capsys):
    monkeypatch.setattr("kdnas.executors._ray_cluster._SILENT_S", 0.1)
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    def slow(**options):
        time.sleep(0.5)
        raise ConnectionError("it asks for a token")

    monkeypatch.setattr("ray.init", slow)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(ConfigError, match="executor.address: auto: it asks for a token"):
        Cluster("auto", workers=1, needs=Needs(1.0, 0.0, {}))
    assert "waiting for the Ray cluster at auto to take this program in" in capsys.readouterr().err


@needs_ray
def test_a_lack_of_room_is_said(build, monkeypatch, capsys):
    monkeypatch.setattr("kdnas.executors._ray_cluster._SILENT_S", 0.1)
    monkeypatch.setattr("kdnas.executors.ray._FIRST_PLACEMENT_S", 0.6)
    build(workers=1, cpus=64)
    assert "waiting for a node with room for a worker, which takes CPU: 64" in capsys.readouterr().err


def test_without_ray_it_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"executor.type: .*pip install 'kdnas\[ray\]'"):
        EXECUTORS.build("ray", make_evaluate)


def test_a_worker_must_take_something():
    with pytest.raises(ConfigError, match=r"executor.cpus"):
        EXECUTORS.build("ray", make_evaluate, cpus=0)


def test_how_many_workers_a_cluster_holds():
    needs = Needs(2.0, 0.25, {"big": 1.0})
    assert needs.fits({"CPU": 64.0, "GPU": 1.0, "big": 8.0}) == 4
    assert needs.fits({"CPU": 7.0, "GPU": 1.0, "big": 8.0}) == 3
    assert needs.fits({"CPU": 7.0, "GPU": 1.0}) == 0
    assert Needs(0.1, 0.0, {}).fits({"CPU": 0.3}) == 3


def test_a_slot_tells_what_it_hears_and_leaves_at_once():
    slot = Slot(pickle.dumps(make_evaluate), Surroundings(str(Path.cwd()), ("/no/such/folder",)), 1, 60.0)
    assert "/no/such/folder" not in sys.path
    assert slot.hear().opening is False
    heard = slot.work("a", Task("square", x=3), None)
    assert heard.finished[0].result.seen["value"] == 9
    called = threading.Timer(0.5, slot.leave)
    called.start()
    assert slot.work("b", Task("sleep", seconds=60), None).finished == ()
    called.join()


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379"])
def test_an_address_where_nobody_answers_is_told_at_once(address, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # as in a program that has connected to no cluster
    began = time.monotonic()
    with pytest.raises(ConfigError, match=rf"executor.address: {address}: no Ray cluster answers there: "):
        Cluster(address, workers=1, needs=Needs(1.0, 0.0, {}))
    assert time.monotonic() - began < 30
