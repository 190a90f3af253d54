"""The process that keeps a Ray cluster of kdnas's own: `python -m kdnas.executors._ray_head`.

It reads what the cluster is to have from standard input, one line of JSON, and writes where it is to standard output.
It lives in a session of its own, which a terminal's Ctrl-C does not reach. When its standard input ends, since the
controller has closed it or is dead however it died, every process of the session is killed and its folder removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from kdnas.executors._scratch import Scratch

_LONGEST_PLACE = 24
"""Characters of the temporary folder's path, with which the path of Ray's longest socket has at most 107."""
_OBJECTS_BYTES = 100 * 1024**2
"""Shared memory: jobs and results are small."""
_ENDING_S = 10.0


def main() -> None:
    """Start the cluster, and end it with standard input."""
    wanted = json.loads(sys.stdin.readline())
    scratch = Scratch("kdnas-ray-", _LONGEST_PLACE)
    try:
        print(json.dumps(_started(wanted, scratch.path)), flush=True)
        sys.stdin.read()
    finally:
        _end_session()
        scratch.remove()
    os._exit(0)  # Ray's own farewell to processes that are gone takes seconds


def _started(wanted: dict[str, Any], folder: Path) -> dict[str, str]:
    os.environ.setdefault("RAY_worker_niceness", "0")  # as any other search's workers, where Ray's would give way
    import ray

    context: Any = ray.init(
        address="local",
        num_cpus=wanted["cpus"],
        num_gpus=wanted["gpus"],
        resources=wanted["resources"],
        object_store_memory=_OBJECTS_BYTES,
        include_dashboard=wanted["dashboard"],
        dashboard_host="127.0.0.1",
        configure_logging=False,
        log_to_driver=False,
        _temp_dir=str(folder),
    )
    return {"address": context.address_info["gcs_address"], "dashboard": context.dashboard_url or ""}


def _end_session() -> None:
    """Kill every other process of this session, and those that they start meanwhile."""
    end = time.monotonic() + _ENDING_S
    while others := _session():
        for pid in others:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            return
        time.sleep(0.02)


def _session() -> list[int]:
    """Return the other living processes of this session; none where the system does not list them (no Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, _parent, _group, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(session) == os.getsid(0) and state != "Z" and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    main()
