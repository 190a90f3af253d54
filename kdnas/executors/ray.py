"""Evaluations on a Ray cluster, whose nodes come and go: one actor a device slot."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic

from pydantic import Field

from kdnas.core.words import counted, printable
from kdnas.errors import ConfigError, Problem, RunError
from kdnas.executors import EXECUTORS, Evaluate, Finished, R, T
from kdnas.executors._listening import NewsExecutor
from kdnas.executors._ray_cluster import Cluster, Needs, said_if_slow
from kdnas.executors._ray_slot import Heard, Place, Slot, Surroundings
from kdnas.version import __version__

_PLACEMENT_S = 20.0
"""How long the start waits for all workers to find a node."""
_FIRST_PLACEMENT_S = 60.0
"""And for the first of them: a process starts in 1 s, in many where the machine is busy."""
_LOSSES_ALLOWED = 3
_SILENCE_S = 90.0
"""So long after its longest silence a slot that sends nothing is lost: its process is stopped, or its network gone."""
_LOOK_S = 5.0
"""How often new nodes are looked for."""
_LEAVE_S = 3.0
_PATIENCE_S = 60.0
"""How often the lack of a node with room is reported."""


@dataclass(frozen=True)
class _Task(Generic[T]):
    key: str
    job: T
    time_limit_s: float
    losses: int = 0
    """Slots that were lost with it."""
    outgrown: bool = False
    """Whether Ray has stopped it for its node's memory, be it that it or another job filled that."""


@dataclass
class _Slot(Generic[T]):
    actor: Any
    call: Any = None
    """What the actor was asked last and has not answered."""
    called: float = 0.0
    """When, on the monotonic clock."""
    place: Place | None = None
    """Where it is; None before it has found a node."""
    task: _Task[T] | None = None

    def ask(self, call: Any) -> None:
        """Note that the actor was called."""
        self.call, self.called = call, time.monotonic()


@EXECUTORS.register
class Ray(NewsExecutor[T, R]):
    """Workers on the nodes of a Ray cluster, one process each, for which Ray finds a place with room.

    `address` is that of a cluster: `auto` (the one this machine is part of), `host:port` or `ray://host:10001`; `local`
    starts one here, on the loopback address, which ends with the search. Unless it is stated it is RAY_ADDRESS, else
    `local`. Each worker takes `cpus` (its `threads`, unless stated), `gpus` (1 on CUDA; fractions share a device) and
    custom `resources` of its node. `runtime_env` is Ray's, as for packages and variables of the workers. `workers` None
    is as many as the cluster has room for, also when nodes come later. A lost node costs the trials that ran on it,
    which run again elsewhere; so do those that Ray stops where memory is full, once and alone on a node. Raises
    ConfigError (no such cluster), RunError (it does not start).
    """

    elsewhere = True

    def __init__(
        self,
        make_evaluate: Callable[[], Evaluate[T, R]],
        *,
        workers: Annotated[int, Field(ge=1)] | None = None,
        threads: Annotated[int, Field(ge=1)] = 1,
        time_limit_s: Annotated[float, Field(gt=0)] = 3600.0,
        devices: Annotated[int, Field(ge=0)] = 0,
        address: str | None = None,
        cpus: Annotated[float, Field(ge=0)] | None = None,
        gpus: Annotated[float, Field(ge=0)] | None = None,
        resources: Mapping[str, Annotated[float, Field(gt=0)]] = {},
        runtime_env: Mapping[str, Any] = {},
    ):
        super().__init__(make_evaluate)
        gpus = gpus if gpus is not None else float(devices > 0)
        self._needs = Needs(float(threads) if cpus is None else cpus, gpus, dict(resources))
        if not self._needs.as_dict():
            raise ConfigError(Problem("executor.cpus", "a worker must take something of its node", "cpus, gpus"))
        self._workers = workers
        self._threads = threads
        self._time_limit_s = time_limit_s
        self._runtime_env = dict(runtime_env)
        self._waiting: deque[_Task[T]] = deque()
        self._slots: list[_Slot[T]] = []
        self._failed_starts = 0
        self._looked = self._announced = time.monotonic()
        self._closed = False
        opening, surroundings = pickle.dumps(make_evaluate), Surroundings.here()
        self._arguments = opening, surroundings, threads, time_limit_s
        self._cluster = Cluster(address, workers=workers, needs=self._needs)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @classmethod
    @contextlib.contextmanager
    def site(cls, device: str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Be connected to the cluster until the context ends. A worker has a device of it where there are any."""
        given = {name: options.get(name) for name in ("workers", "threads", "cpus", "gpus", "resources")}
        cpus = float(given["threads"] or 1) if given["cpus"] is None else given["cpus"]
        needs = Needs(cpus, given["gpus"] or 0.0, dict(given["resources"] or {}))
        cluster = Cluster(options.get("address"), workers=given["workers"], needs=needs)
        try:
            gpus = given["gpus"]
            if gpus is None:
                gpus = float(device != "cpu" and cluster.total().get("GPU", 0.0) > 0)
            yield {**options, "address": cluster.address, "gpus": gpus}
        finally:
            cluster.close()

    @property
    def notice(self) -> str:
        """Where the cluster is, how many workers have found a node, and the address of its dashboard."""
        hosts = {slot.place.host for slot in self._slots if slot.place is not None}
        placed = sum(slot.place is not None for slot in self._slots)
        kind = "local Ray cluster" if self._cluster.is_own else f"Ray cluster {self._cluster.address}"
        where = f"{counted(placed, 'worker')} on {counted(len(hosts), 'machine')}"
        wanting = f", {len(self._slots) - placed} waiting for one" if placed < len(self._slots) else ""
        page = f"; dashboard: http://{self._cluster.dashboard}" if self._cluster.dashboard else ""
        return f"{kind}: {where}{wanting}{page}"

    @property
    def free(self) -> int:
        """The number of jobs that a placed worker would begin now; 1 where none is placed and no job waits."""
        placed = [slot.place.host for slot in self._slots if slot.place is not None and slot.task is None]
        waiting = sum(not task.outgrown for task in self._waiting)
        is_placed = any(slot.place is not None for slot in self._slots)
        held = self._held
        idle = sum(host != held for host in placed) - waiting
        return max(idle, 0) if is_placed or self._waiting else 1

    @property
    def running(self) -> int:
        """The number of jobs submitted and not yet finished."""
        return len(self._waiting) + sum(slot.task is not None for slot in self._slots)

    def submit(self, key: str, job: T, *, time_limit_s: float | None = None) -> None:
        """Hand `job` to a worker that is placed and free. Raises RuntimeError when there is none."""
        if not self.free:
            raise RuntimeError("no worker is free")
        self._waiting.append(_Task(key, job, self._time_limit_s if time_limit_s is None else time_limit_s))
        self._hand_out()

    def _round(self, pause_s: float) -> list[Finished[R]]:
        finished = self._hear(min(pause_s, _LOOK_S))
        finished += self._look()
        self._hand_out()
        return finished

    def close(self) -> None:
        """Kill every worker, and the cluster that was started for them."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(Exception):  # of a cluster that is gone
            self._dismiss()
        self._cluster.close()

    def _dismiss(self) -> None:
        import ray

        leaving = [slot.actor.leave.remote() for slot in self._slots if slot.place is not None]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_S)
        for slot in self._slots:
            ray.kill(slot.actor)

    def _start(self) -> None:
        """Ask for the workers, and wait for a while until they are placed, longer for the first of them."""
        for _ in range(self._wanted()):
            self._slots.append(self._asked_for())
        with said_if_slow(f"waiting for a node with room for a worker, which takes {_shown(self._needs.as_dict())}"):
            self._wait_until_placed()

    def _wait_until_placed(self) -> None:
        began = time.monotonic()
        while (placed := sum(slot.place is not None for slot in self._slots)) < len(self._slots):
            if time.monotonic() - began > (_PLACEMENT_S if placed else _FIRST_PLACEMENT_S):
                return
            self._hear(0.5, placing=True)

    def _wanted(self) -> int:
        return self._workers or max(self._needs.fits(self._cluster.total()), 1)

    def _asked_for(self) -> _Slot[T]:
        import ray

        make: Any = ray.remote(Slot)
        actor = make.options(
            num_cpus=self._needs.cpus,
            num_gpus=self._needs.gpus,
            resources=dict(self._needs.resources),
            runtime_env=self._runtime_env or None,
            max_concurrency=2,  # one that works or waits, and one that leaves
        ).remote(*self._arguments)
        return _Slot(actor, actor.place.remote())

    def _hear(self, pause_s: float, *, placing: bool = False) -> list[Finished[R]]:
        """Take in what slots send within `pause_s`; return the jobs that ended. `placing`: until one is placed."""
        import ray

        asked = {slot.call: slot for slot in self._slots if slot.call is not None and not (placing and slot.place)}
        if not asked:
            time.sleep(min(pause_s, 0.05))
            return []
        if not ray.wait(list(asked), num_returns=1, timeout=pause_s)[0]:
            return []
        finished: list[Finished[R]] = []
        for call in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0]:
            slot = asked[call]
            slot.call = None
            try:
                answer = ray.get(call)
            except ray.exceptions.RayError as error:
                finished += self._lost(slot, error)
                continue
            if isinstance(answer, Place):
                self._placed(slot, answer)
            else:
                finished += self._take(slot, answer)
        return finished

    def _placed(self, slot: _Slot[T], place: Place) -> None:
        if place.version != __version__:
            self.close()
            raise RunError(f"{place.host} has kdnas {place.version}, and {__version__} runs here: install the same")
        slot.place, self._failed_starts = place, 0
        slot.ask(slot.actor.hear.remote())

    def _take(self, slot: _Slot[T], heard: Heard) -> list[Finished[R]]:
        if heard.broken is not None:
            self.close()
            raise heard.broken
        self._notes += heard.notes
        self._notices += heard.notices
        self._progress |= heard.progress
        ended = [one for one in heard.finished if slot.task is not None and one.key == slot.task.key]
        if ended:
            slot.task = None
        if slot.task is not None or heard.opening:
            slot.ask(slot.actor.hear.remote())
        return ended

    def _lost(self, slot: _Slot[T], error: Exception) -> list[Finished[R]]:
        """Ask for a slot in the place of one that is gone. Its job waits to run again, unless that went on too long."""
        import ray

        reason = printable(_cause(error), 300)
        with contextlib.suppress(Exception):
            ray.kill(slot.actor)
        if slot.place is None:
            self._failed_starts += 1
            if self._failed_starts >= _LOSSES_ALLOWED:
                self.close()
                raise RunError(
                    f"{self._failed_starts} workers in a row could not start on the cluster; the last: {reason}"
                )
        else:
            self._notices.append(f"the worker on {slot.place.host} was lost: {reason}")
        self._slots[self._slots.index(slot)] = self._asked_for()
        if slot.task is None:
            return []
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            if slot.task.outgrown:
                return [Finished(slot.task.key, failure=f"out of memory on its machine: {reason}")]
            self._waiting.appendleft(replace(slot.task, outgrown=True))
            return []
        losses = slot.task.losses + 1
        if losses >= _LOSSES_ALLOWED:
            return [Finished(slot.task.key, failure=f"{losses} workers were lost while they worked on it: {reason}")]
        self._waiting.appendleft(replace(slot.task, losses=losses))
        return []

    def _hand_out(self) -> None:
        """Give jobs that wait to slots that are free; one that still opens its data is asked once that is done."""
        for slot in self._slots:
            if slot.place is None or slot.task is not None or slot.call is not None:
                continue
            held = slot.place.host == self._held
            if held and self._running_at(slot.place.host):
                continue
            task = next((task for task in self._waiting if task.outgrown == held), None)
            if task is not None:
                self._waiting.remove(task)
                slot.task = task
                slot.ask(slot.actor.work.remote(task.key, task.job, task.time_limit_s))

    @property
    def _held(self) -> str | None:
        """The host on which a job that Ray has stopped for memory runs alone, or is to: where least runs.

        Ray stops whatever runs on a node that is full, so that nobody knows whose fault that was.
        """
        placed = [(slot.place.host, slot.task) for slot in self._slots if slot.place is not None]
        suspects = [host for host, task in placed if task is not None and task.outgrown]
        if not suspects and any(task.outgrown for task in self._waiting):
            suspects = sorted({host for host, _ in placed}, key=lambda host: (self._running_at(host), host))
        return suspects[0] if suspects else None

    def _running_at(self, host: str) -> int:
        return sum(slot.task is not None and slot.place is not None and slot.place.host == host for slot in self._slots)

    def _look(self) -> list[Finished[R]]:
        """Handle slots that went silent and nodes that came, and report what waits for a node.

        Returns the jobs that are given up with a silent slot.
        """
        self._cluster.check()
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return []
        self._looked, finished = now, []
        for slot in [each for each in self._slots if each.call is not None and each.place is not None]:
            if now - slot.called > _SILENCE_S:
                slot.call = None
                finished += self._lost(slot, RunError(f"it has sent nothing for {now - slot.called:.0f} s"))
        if self._workers is None:
            self._slots += [self._asked_for() for _ in range(self._wanted() - len(self._slots))]
        if self._waiting and now - self._announced > _PATIENCE_S and all(slot.place is None for slot in self._slots):
            self._announced = now
            self._notices.append(f"no node has room for a worker, which takes {_shown(self._needs.as_dict())}")
        return finished


def _cause(error: Exception) -> str:
    """Return Ray's reason for a lost actor, or for one that could not start, in one line."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("class_name:", "actor_id:", "pid:", "namespace:", "ip:"))]
    return " ".join(kept) or type(error).__name__


def _shown(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {value:g}" for name, value in resources.items())
