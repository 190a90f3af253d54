"""A real NNI 3.0 experiment (github.com/microsoft/nni) with kdnas in the tuner's place.

NNI's manager is a node program: it starts a process for each trial, keeps what they report, and shows it on its page.
It has no authentication and would listen on every address. Here it gets one socket, opened on the loopback address
(`_nni_manager.js`), and answers only below a path that nobody can guess, so that no page of the user's browser and no
other program finds its way to it. It lives in a session of its own, which ends as a whole with the controller.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdnas.errors import ConfigError, Problem, RunError

_START_S = 120.0
"""A cold start takes 3 s on a quiet machine."""
_REQUEST_S = 30.0
_SOCKET = 3
"""The manager's descriptor of the socket that it listens on: node keeps the first ones from trials, not one far up."""
_MOVED = f"""
import os, sys
given = int(sys.argv[1])
if given != {_SOCKET}:
    os.dup2(given, {_SOCKET})
    os.close(given)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""A program that starts the manager with the socket it was given at that place."""


@dataclass(frozen=True)
class Ended:
    """A trial that NNI has seen the end of."""

    number: int
    status: str
    """NNI's: SUCCEEDED, FAILED (an exit code other than 0), USER_CANCELED (killed by a signal)."""
    last_words: str
    """The last line of its standard error."""


class Experiment:
    """A running experiment. Raises ConfigError (`port` is taken, `files` not writable), RunError, OSError, ImportError.

    `files` is where NNI keeps what belongs to it; `port` 0 is any that is free; `command` is run for each trial in the
    present folder, `concurrency` at a time.
    """

    def __init__(self, name: str, *, scratch: Path, files: Path, port: int, concurrency: int, command: str):
        from websockets.sync.client import connect  # one of nni's own requirements

        self._id = f"kdnas-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._files = files
        self._log = files / self._id / "manager.log"
        try:
            self._log.parent.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(Problem("executor.folder", f"{files} cannot be used: {error.strerror}")) from None
        self._closing = contextlib.ExitStack()
        try:
            listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            problem = Problem("executor.port", f"127.0.0.1:{port} cannot be listened on: {error.strerror}", "0: any")
            raise ConfigError(problem) from None
        host, self._port = listener.getsockname()
        self._path = secrets.token_hex(16)  # not of the letters of base64: one that begins with - is read as an option
        self.url = f"http://{host}:{self._port}/{self._path}/"
        with listener:
            self._process = self._start(listener, scratch)
        try:
            self._list_it(name)
            self._await_manager()
            channel = socket.create_connection((host, self._port))  # a ready socket takes no proxy
            url = f"ws://{host}:{self._port}/{self._path}/tuner"
            self._channel = self._closing.enter_context(connect(url, sock=channel, max_queue=None))
            self._request("POST", "experiment", _configuration(name, files, concurrency, command))
        except BaseException as error:
            lines = self._last_lines()
            self.stop()
            if isinstance(error, OSError | TimeoutError):
                raise RunError(f"NNI's experiment did not start: {error}{lines}") from error
            raise

    @property
    def description(self) -> str:
        """What it is and where its page is."""
        return f"NNI experiment {self._id}: {self.url}"

    def propose(self, number: int, parameters: Mapping[str, Any]) -> None:
        """Hand out trial `number`; NNI shows its `parameters`."""
        content = {
            "parameter_id": number,
            "parameter_source": "algorithm",
            "parameters": dict(parameters),
            "parameter_index": 0,
        }
        self._send("TR", json.dumps(content))

    def ended(self) -> list[Ended]:
        """Return the trials that ended since the last call. Raises RunError when the experiment itself has ended."""
        found = []
        while (command := self._receive()) is not None:
            if command["type"] == "IN":
                self._send("ID", "")
            elif command["type"] == "EN":
                content = json.loads(command["content"])
                number = json.loads(content["hyper_params"]).get("parameter_id")
                if isinstance(number, int):
                    found.append(Ended(number, content["event"], self._last_words(content["trial_job_id"])))
        return found

    def stop(self) -> None:
        """Kill the manager, its trials and whatever they started. Idempotent."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(OSError, RunError):
            self._closing.close()

    def _start(self, listener: socket.socket, scratch: Path) -> subprocess.Popen[bytes]:
        import nni_node

        program = Path(nni_node.__path__[0])
        arguments = {
            "port": self._port,
            "experiment-id": self._id,
            "action": "create",
            "experiments-directory": self._files,
            "log-level": "info",
            "url-prefix": self._path,
            "tuner-command-channel": f"ws://localhost:{self._port}/{self._path}/tuner",
            "python-interpreter": sys.executable,
            "mode": "local",
        }
        preload = str(Path(__file__).with_name("_nni_manager.js"))
        words = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
        settings = {"socket": _SOCKET, "home": str(self._files), "scratch": str(scratch), "words": words}
        node = [str(program / "node"), "--max-old-space-size=4096", "--require", preload, str(program / "main.js")]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _MOVED, str(listener.fileno()), *node],
                cwd=program,
                env={**os.environ, "KDNAS_NNI_MANAGER": json.dumps(settings)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def _list_it(self, name: str) -> None:
        """Write the list of experiments that the manager would otherwise look for in the user's home."""
        entry = {
            "id": self._id,
            "experimentName": name,
            "platform": "local",
            "port": self._port,
            "prefixUrl": self._path,
            "pid": self._process.pid,
            "startTime": int(time.time() * 1000),
            "endTime": "N/A",
            "status": "INITIALIZED",
            "tag": [],
            "webuiUrl": [],
            "logDir": str(self._files),
        }
        listed = self._files / "nni-experiments" / ".experiment"
        listed.parent.mkdir(exist_ok=True)
        listed.write_text(json.dumps({self._id: entry}), encoding="utf-8")

    def _await_manager(self) -> None:
        end = time.monotonic() + _START_S
        while True:
            if self._process.poll() is not None:
                raise ConnectionError(f"its manager ended with exit code {self._process.returncode}")
            with contextlib.suppress(OSError):  # not listening, or not ready
                if self._request("GET", "check-status") != b"INITIALIZING":
                    return
            if time.monotonic() > end:
                raise TimeoutError(f"its manager printed nothing for {_START_S:g} s")
            time.sleep(0.1)

    def _request(self, method: str, path: str, body: Any = None) -> bytes:
        request = urllib.request.Request(
            f"{self.url}api/v1/nni/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=_REQUEST_S) as response:
            content: bytes = response.read()
        return content

    def _send(self, kind: str, content: str) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            self._channel.send(json.dumps({"type": kind, "content": content}))
        except (ConnectionClosed, OSError):
            raise self._gone() from None

    def _receive(self) -> dict[str, Any] | None:
        from websockets.exceptions import ConnectionClosed

        try:
            command: dict[str, Any] = json.loads(self._channel.recv(timeout=0))
        except TimeoutError:
            return None
        except (ConnectionClosed, OSError):
            raise self._gone() from None
        if command["type"] in ("TE", "_bye_"):
            raise self._gone()
        return command

    def _gone(self) -> RunError:
        return RunError(f"NNI's experiment was stopped{self._last_lines()}")

    def _last_lines(self) -> str:
        """Return the end of what the manager printed, for an error message."""
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            if lines:
                return "; its output: " + " | ".join(lines[-3:])
        return ""

    def _last_words(self, trial: str) -> str:
        for errors in (self._files / self._id).glob(f"environments/*/trials/{trial}/trial.stderr"):
            lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""


def _configuration(name: str, files: Path, concurrency: int, command: str) -> dict[str, Any]:
    """Return the experiment's configuration, as NNI's own launcher would send it."""
    trial = {"trialCommand": command, "trialCodeDirectory": str(Path.cwd())}
    return {
        **trial,
        "experimentName": name,
        "experimentType": "hpo",
        "experimentWorkingDirectory": str(files),
        "searchSpace": {},
        "trialConcurrency": concurrency,
        "useAnnotation": False,
        "debug": False,
        "logLevel": "info",
        # The page sorts by it; the proposals come from kdnas.
        "tuner": {"name": "kdnas", "classArgs": {"optimize_mode": "maximize"}},
        "trainingService": {
            **trial,
            "platform": "local",
            "useActiveGpu": False,
            "maxTrialNumberPerGpu": 1,
            "reuseMode": False,
            "debug": False,
        },
    }
