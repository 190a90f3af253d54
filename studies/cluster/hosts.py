"""Several hosts on one machine: `sudo python studies/cluster/hosts.py` (Linux, root, `ip` of iproute2).

Three network namespaces on a bridge of their own are a head without room for workers and two hosts of one worker each,
with a Ray cluster across them. The study of this folder is searched undisturbed, then with one host killed, with one
stopped for 0.8 s of every second, and with one cut off the network for 30 s. Writes results/hosts.json.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BRIDGE = "kdnas-br"
HOSTS = {"kdnas-head": "10.211.77.1", "kdnas-a": "10.211.77.2", "kdnas-b": "10.211.77.3"}
HEAD, VICTIM = "kdnas-head", "kdnas-b"
PORT = 6399
TRIALS, SECONDS = 12, 4
PARTED_S = 30.0
CALM_S = 400.0
"""So long a cluster has for its nodes to come."""


def main() -> None:
    """Search under each disturbance, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "hosts.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdnas-hosts-") as scratch:
        rows = [searched(Path(scratch), name, disturb) for name, disturb in DISTURBANCES.items()]
    whole = rows[0].pop("table")
    for row in rows[1:]:
        row["same_students_and_scores"] = row.pop("table") == whole
    found = {"cores": os.cpu_count(), "trials": TRIALS, "trial_seconds": SECONDS, "workers": 2, "rows": rows}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def searched(
    scratch: Path, name: str, disturb: Callable[[], contextlib.AbstractContextManager[None]]
) -> dict[str, Any]:
    """Return what became of a search on a cluster of its own that is disturbed once its third trial has ended."""
    run = scratch / name
    with network(), cluster(scratch / f"ray{len(name)}"):  # the path of a socket may have 107 characters
        settings = {
            "executor": f"{{type: ray, address: '{HOSTS[HEAD]}:{PORT}', workers: 2}}",
            "evaluator.options.seconds": SECONDS,
            "sampler": "random",
        }
        stated = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "kdnas", "search", HERE, "--data-root", HERE, "--out", run, "--json"]
        began = time.monotonic()
        search = subprocess.Popen(
            inside(HEAD, [*command, "--trials", TRIALS, *stated]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        heard: list[str] = []
        listening = threading.Thread(target=lambda: heard.extend(search.stderr or ()))
        listening.start()
        events, ended = [], []
        with contextlib.ExitStack() as disturbed:
            for line in search.stdout or ():
                events.append(json.loads(line))
                if events[-1].get("event") == "TrialEnded":
                    ended.append(time.monotonic() - began)
                    if len(ended) == 3:
                        disturbed.enter_context(disturb())
            code = search.wait()
        listening.join()
    table = sorted(
        (row["arch"], row["accuracy"])
        for row in csv.DictReader((run / "trials.csv").open())
        if row["state"] == "complete"
    )
    row = {
        "disturbance": name,
        "exit_code": code,
        "complete": len(table),
        "first_to_last_trial_s": round(ended[-1] - ended[0], 1),
        "longest_pause_s": round(max(later - earlier for earlier, later in itertools.pairwise(ended)), 1),
        "lines": [line.strip() for line in heard if "lost" in line or "waiting" in line]
        + [event["text"] for event in events if "lost" in event.get("text", "") or "room" in event.get("text", "")],
        "load": round(os.getloadavg()[0], 1),
        "table": table,
    }
    print(json.dumps({key: value for key, value in row.items() if key != "table"}), flush=True)
    return row


# -- disturbances ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def dies() -> Iterator[None]:
    """Kill every process of one host, for good."""
    for pid in processes(VICTIM):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    yield


@contextlib.contextmanager
def is_slow() -> Iterator[None]:
    """Have one host stand still for most of every second."""
    over = threading.Event()

    def hinder() -> None:
        while not over.is_set():
            for number, pause_s in ((signal.SIGSTOP, 0.8), (signal.SIGCONT, 0.2)):
                for pid in processes(VICTIM):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(pause_s)

    thread = threading.Thread(target=hinder)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def is_parted() -> Iterator[None]:
    """Cut one host off the network for a while; where its Ray has given up by then, it is started again."""

    def back() -> None:
        ip("link", "set", link(VICTIM), "up")
        time.sleep(5)
        if not is_up(VICTIM):
            join_cluster(VICTIM)

    ip("link", "set", link(VICTIM), "down")
    timer = threading.Timer(PARTED_S, back)
    timer.start()
    try:
        yield
    finally:
        timer.join()


DISTURBANCES = {"none": contextlib.nullcontext, "one host dies": dies, "one host is slow": is_slow, "parted": is_parted}


# -- hosts -------------------------------------------------------------------------------------------------------------


def ip(*words: str, check: bool = True) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=check, stderr=None if check else subprocess.DEVNULL)


def inside(host: str, command: list[Any]) -> list[str]:
    """Return the command that runs `command` on a host."""
    return ["ip", "netns", "exec", host, *map(str, command)]


def link(host: str) -> str:
    """Return the bridge's end of a host's cable."""
    return f"{host}-br"


def processes(host: str) -> list[int]:
    """Return the processes of a host."""
    listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]


def name(pid: int) -> str:
    """Return what a process is called; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Have the hosts, joined by a bridge; all their processes end with the context."""
    _remove()
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("link", "set", BRIDGE, "up")
        for host, address in HOSTS.items():
            ip("netns", "add", host)
            ip("link", "add", link(host), "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("link", "set", link(host), "master", BRIDGE, "up")
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        _remove()


def _remove() -> None:
    for host in HOSTS:
        if Path("/run/netns", host).exists():
            for pid in processes(host):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ip("netns", "del", host, check=False)
        ip("link", "del", link(host), check=False)
    ip("link", "del", BRIDGE, check=False)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Have a Ray cluster across the hosts."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    folder.mkdir()
    head = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
    ray(HEAD, *head)
    for host in HOSTS:
        if host != HEAD:
            join_cluster(host)
    yield


def join_cluster(host: str) -> None:
    """Start Ray on a host."""
    ray(host, f"--address={HOSTS[HEAD]}:{PORT}", "--num-cpus=1")


def ray(host: str, *options: str) -> None:
    """Start Ray on a host, as a service would."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={HOSTS[host]}", "--block"]
    subprocess.Popen(
        inside(host, [*command, "--object-store-memory=100000000", *options]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + CALM_S
    while not is_up(host):  # one after the other: they share a folder, in which names of sockets are counted up
        if time.monotonic() > end:
            raise SystemExit(f"Ray did not start on {host}")
        time.sleep(0.5)
    time.sleep(5)


def is_up(host: str) -> bool:
    """Whether Ray runs on a host."""
    return any("raylet" in name(pid) for pid in processes(host))


if __name__ == "__main__":
    main()
