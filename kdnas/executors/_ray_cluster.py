"""A Ray cluster (github.com/ray-project/ray) that kdnas works on: the user's, or one that it keeps for itself.

Its own listens on the loopback address alone, asks for a token, sends no usage statistics and ends with the
controller (`_ray_head.py`). The workers' words go to Ray's log files, never to the controller's terminal.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from kdnas.errors import ConfigError, Problem, RunError

_START_S = 180.0
"""A cold start takes 5 to 10 s on a quiet machine."""
_ENDS_S = 5.0
_REACHED_S = 10.0
_SILENT_S = 10.0
"""How long something may take before it is said what is waited for."""
_MANY = 1000
_ANYWHERE = "auto, local, ray://host:10001, host:port"


@dataclass(frozen=True)
class Needs:
    """What one worker takes of its node."""

    cpus: float
    gpus: float
    resources: Mapping[str, float]

    def as_dict(self) -> dict[str, float]:
        """Return the resources that are needed, as Ray names them."""
        named = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: value for name, value in named.items() if value}

    def fits(self, total: Mapping[str, float]) -> int:
        """Return how many workers `total` holds, at most."""
        needed = self.as_dict()
        return min((int(total.get(name, 0.0) / value + 1e-6) for name, value in needed.items()), default=0)


class Cluster:
    """A connection to a cluster. Raises ConfigError (no Ray, no such cluster), RunError (it does not start).

    `address` None is that of RAY_ADDRESS, else a cluster of its own, as "local" always is, with room for `workers`
    workers, each of which takes `needs`; None: with all that this machine has.
    """

    def __init__(self, address: str | None, *, workers: int | None, needs: Needs):
        self._head: subprocess.Popen[str] | None = None
        self._was_there = False
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(Problem("executor.type", "ray needs Ray: pip install 'kdnas[ray]'"))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address == "local":
            address, self.dashboard = self._started(workers, needs)
        else:
            self.dashboard = ""
        try:
            self._connect(address)
        except BaseException:
            self.close()
            raise

    @property
    def is_own(self) -> bool:
        """Whether it is kdnas's own, on this machine."""
        return self._head is not None

    def check(self) -> None:
        """Raise RunError where kdnas's own cluster has ended."""
        if self._head is not None and self._head.poll() is not None:
            raise RunError(f"the local Ray cluster ended{self._last_lines()}")

    def total(self) -> dict[str, float]:
        """Return the resources of the nodes that live now."""
        import ray

        found: dict[str, float] = ray.cluster_resources()
        return found

    def close(self) -> None:
        """Disconnect; kdnas's own cluster ends. Idempotent."""
        if "ray" in sys.modules and not self._was_there:
            import ray

            with _own_sigterm():
                ray.shutdown()
        if self._head is not None:
            self._end_own()

    def _started(self, workers: int | None, needs: Needs) -> tuple[str, str]:
        """Return the address and the dashboard of a cluster that is started for this process."""
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's switch for the loopback address alone
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        if "ray" in sys.modules:  # which has read these already
            vars(importlib.import_module("ray._private.ray_constants"))["ENABLE_RAY_CLUSTER"] = False
            raylet = importlib.import_module("ray._raylet")
            raylet.Config.initialize("")
            if loader := getattr(raylet, "AuthenticationTokenLoader", None):  # releases before 2.52 have no tokens
                loader.instance().reset_cache()
        self._errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # as long as this lives
        self._head = subprocess.Popen(
            [sys.executable, "-m", "kdnas.executors._ray_head"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        wanted = {
            "cpus": workers and max(workers * needs.cpus, 1),
            "gpus": workers and (workers * needs.gpus or None),
            "resources": {name: (workers or _MANY) * value for name, value in needs.resources.items()},
            "dashboard": importlib.util.find_spec("aiohttp_cors") is not None,  # one of ray[default]'s
        }
        try:
            import ray  # noqa: F401  # while the cluster starts

            with said_if_slow("waiting for a local Ray cluster to start"):
                return self._answer(wanted)
        except BaseException:
            self._end_own()
            raise

    def _answer(self, wanted: Mapping[str, Any]) -> tuple[str, str]:
        assert self._head is not None
        assert self._head.stdin is not None
        assert self._head.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._head.stdin.write(json.dumps(wanted) + "\n")
            self._head.stdin.flush()
        line = ""
        if select.select([self._head.stdout], [], [], _START_S)[0]:
            line = self._head.stdout.readline()
        if not line:
            raise RunError(f"no local Ray cluster could be started{self._last_lines()}")
        found = json.loads(line)
        return found["address"], found["dashboard"]

    def _connect(self, address: str) -> None:
        import ray

        self._was_there = ray.is_initialized()
        self.address = address
        if self._was_there:  # the user's own program has connected
            return
        _refuse_unreachable(address)
        waiting = f"waiting for the Ray cluster at {address} to take this program in"
        try:
            with _own_sigterm(), said_if_slow(f"{waiting}: one of other software, or with a token, never does"):
                context = ray.init(
                    address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR
                )
        except (ConnectionError, ValueError, RuntimeError, OSError, ImportError) as error:
            words = " ".join(str(error).split())[:300]
            raise ConfigError(Problem("executor.address", f"{address}: {words}", _ANYWHERE)) from None
        self.dashboard = self.dashboard or context.dashboard_url or ""
        found = getattr(context, "address_info", None) or {}
        self.address = found.get("gcs_address") or address
        if self.is_own and not str(found.get("node_ip_address", "")).startswith(("127.", "::1")):
            raise RunError("this release of Ray does not keep to the loopback address: start a cluster of your own")

    def _end_own(self) -> None:
        assert self._head is not None
        assert self._head.stdin is not None
        with contextlib.suppress(OSError):
            self._head.stdin.close()
        try:
            self._head.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._head.pid, signal.SIGKILL)

    def _last_lines(self) -> str:
        """Return the last lines that the cluster's process printed, for an error message."""
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"; its output: {' | '.join(lines[-3:])}" if lines else ""


def _refuse_unreachable(address: str) -> None:
    """Raise ConfigError where nobody answers at `address`: Ray tries for minutes, and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`, or what Ray reports better itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED_S).close()
    except (OSError, OverflowError) as error:
        what = f"{address}: no Ray cluster answers there: {error}"
        raise ConfigError(Problem("executor.address", what, _ANYWHERE)) from None


@contextlib.contextmanager
def said_if_slow(line: str) -> Iterator[None]:
    """Write `line` to standard error where the context does not end within some seconds."""
    timer = threading.Timer(_SILENT_S, functools.partial(print, line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's own answer to SIGTERM, in the place of which Ray puts another: one that exits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
