"""The process of one NNI trial: `python -m kdnas.executors._nni_trial SOCKET`, started by NNI's manager.

It asks NNI which trial it is, takes the job from the controller's socket, and sends the outcome to both. NNI's own
trial API is spoken directly: importing nni takes seconds a trial, and where two trials start together its
`get_next_parameter` may hand each the other's parameters.
"""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from kdnas.core.objective import SCORES
from kdnas.executors._worker import answer, limit_threads, opened, visible_device

_FORM_S = 30.0


def main(path: str) -> int:
    """Run one job; return the exit code for NNI."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # how NNI's page stops a trial: it dies, and is no failure of its job
    channel, trial = os.environ["NNI_TRIAL_COMMAND_CHANNEL"], os.environ["NNI_TRIAL_JOB_ID"]
    number = _number(channel, trial)
    address = socket.socket(socket.AF_UNIX)
    address.connect(path)
    controller = Connection(address.detach())
    controller.send((number, os.getpid()))
    try:
        settings = controller.recv()
    except EOFError:
        print("kdnas proposes the trials of this experiment: this one is not among them", file=sys.stderr)
        return 1
    _set_up(settings)
    make_evaluate, job = controller.recv()
    leaving = _leave_with(controller)
    evaluate = opened(controller, make_evaluate, settings["threads"])
    if evaluate is None:
        leaving.set()
        return 1
    kind, content = answer(evaluate, job)
    if kind == "result":
        _report(channel, trial, number, content.values)
    else:
        print(content, file=sys.stderr)
    leaving.set()
    controller.send((kind, content))
    return 0 if kind == "result" else 1


def _number(channel: str, trial: str) -> int | None:
    """Return the parameter id of the form that NNI keeps for this trial: what its page shows is what is run."""
    url = f"{channel.partition('/env/')[0]}/api/v1/nni/trial-jobs/{trial}"
    end = time.monotonic() + _FORM_S
    while True:
        try:
            form = json.loads(_request("GET", url))
            number: int | None = json.loads(form["hyperParameters"][0])["parameter_id"]
        except (OSError, LookupError):  # NNI writes the form down after it has started the process
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return number


def _set_up(settings: Mapping[str, Any]) -> None:
    """Be as the controller is, and take the device and the threads it grants, before anything heavy is imported."""
    sys.path[:] = settings["path"]
    limit_threads(settings["threads"])
    if settings["device"] is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(settings["device"], visible)


def _leave_with(controller: Connection) -> threading.Event:
    """End this process as soon as the controller is gone: it sends nothing more, so the next event is the end.

    From when the returned event is set, the process ends by itself.
    """
    leaving = threading.Event()

    def watch() -> None:
        multiprocessing.connection.wait([controller])
        if not leaving.is_set():
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return leaving


def _report(channel: str, trial: str, number: int | None, values: Mapping[str, float]) -> None:
    """Tell NNI every number of `values`, as `nni.report_final_result` does; the score is what it ranks by.

    A result without a score (an infeasible student) is not reported. A report that NNI cannot take fails no trial.
    """
    score = next((values[name] for name in SCORES if name in values), None)
    if score is None:
        return
    metric = {
        "parameter_id": number,
        "trial_job_id": trial,
        "type": "FINAL",
        "sequence": 0,
        "value": json.dumps({"default": score, **values}),
    }
    try:
        _request("PUT", channel, {"type": "metric", "metric": json.dumps(metric)})
    except OSError as error:
        print(f"NNI did not get the result: {error}", file=sys.stderr)


def _request(method: str, url: str, body: Any = None) -> bytes:
    request = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        content: bytes = response.read()
    return content


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
