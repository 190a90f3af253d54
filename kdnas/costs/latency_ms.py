"""Inference latency, told as a ratio to a fixed reference network so that drift of the machine cancels.

Student and reference run alternately: `value = median_i(student_i / reference_i) * reference_ms`, where
`reference_ms` was taken once, at the start of the study. A slower spell of the machine slows both sides of the ratio.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from kdnas.core.measurement import Measurement
from kdnas.core.objective import Quantity
from kdnas.core.task import ImageTask
from kdnas.costs import COSTS, MeasuredCost

_ATTEMPTS = 3
_CALM = 0.25
"""Interquartile range over median of the reference's times, above which an attempt is repeated."""
_DRIFT = 3.0
"""Factor between the reference now and at calibration that is told in the context."""


@COSTS.register
class LatencyMs(MeasuredCost):
    """Median latency of one forward pass in milliseconds, interleaved with a reference network.

    `threads` are those of a CPU; `warmup` passes are not timed. Float32, channels_last, inference mode.
    """

    quantity = Quantity("latency_ms", "ms", "minimize", "measured")

    def __init__(
        self,
        device: torch.device,
        *,
        threads: Annotated[int, Field(ge=1, le=1024)] = 1,
        batch_size: Annotated[int, Field(ge=1, le=65536)] = 1,
        repeats: Annotated[int, Field(ge=5, le=100_000)] = 30,
        warmup: Annotated[int, Field(ge=1, le=100_000)] = 5,
    ):
        super().__init__(device)
        self._threads, self._batch_size, self._repeats, self._warmup = threads, batch_size, repeats, warmup

    def calibrate(self, task: ImageTask) -> dict[str, Any]:
        """Return `reference_ms`, the median time of one pass of the reference network."""
        with torch.inference_mode(), _threads(self._threads, self.device):
            run = self._runner(*_reference())
            times = [seconds for (seconds,) in self._alternate([run], rounds=3 * self._repeats)]
        return {"reference_ms": statistics.median(times) * 1e3}

    def measure(self, module: nn.Module, task: ImageTask, calibration: Mapping[str, Any]) -> Measurement:
        """Return the median latency of `module` and its interquartile range, in ms."""
        calibration = calibration or self.calibrate(task)
        with torch.inference_mode(), _threads(self._threads, self.device):
            images = torch.zeros(self._batch_size, *task.input_shape)
            # A copy: the mode, the memory format and the device of the caller's module stay as they are.
            student = self._runner(copy.deepcopy(module), images)
            pairs = self._calmest([student, self._runner(*_reference())])
        reference_ms = float(calibration["reference_ms"])
        ratios = [mine / reference for mine, reference in pairs]
        median, spread = _median_and_spread(ratios)
        return Measurement(
            median * reference_ms, spread * reference_ms, len(ratios), self._context(pairs, reference_ms)
        )

    def _runner(self, module: nn.Module, images: Tensor) -> Callable[[], Any]:
        """Return a function that runs `module` once on `images`, both on the device."""
        module = module.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        return lambda: module(images)

    def _calmest(self, runs: Sequence[Callable[[], Any]]) -> list[tuple[float, ...]]:
        """Return the times of the attempt in which the reference, the last of `runs`, was steadiest."""
        attempts = []
        for _ in range(_ATTEMPTS):
            times = self._alternate(runs, rounds=self._repeats)
            attempts.append((_unrest([row[-1] for row in times]), times))
            if attempts[-1][0] <= _CALM:
                break
        return min(attempts, key=lambda attempt: attempt[0])[1]

    def _alternate(self, runs: Sequence[Callable[[], Any]], rounds: int) -> list[tuple[float, ...]]:
        """Return, for each round, the seconds that each of `runs` took."""
        for _ in range(self._warmup):
            for run in runs:
                run()
        clock = _seconds_cuda if self.device.type == "cuda" else _seconds
        return [tuple(clock(run) for run in runs) for _ in range(rounds)]

    def _context(self, pairs: Sequence[tuple[float, ...]], reference_ms: float) -> str:
        references = [pair[-1] for pair in pairs]
        drift = statistics.median(references) * 1e3 / reference_ms
        where = f"{self.device.type}, {self._threads} thread{'s' * (self._threads > 1)}"
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        notes = [f"{where}, batch {self._batch_size}, float32"]
        if _unrest(references) > _CALM:
            notes.append(f"unsteady: the reference varied by {_unrest(references):.0%}")
        if not 1 / _DRIFT <= drift <= _DRIFT:
            notes.append(f"the reference took {drift:.2g} times as long as at calibration")
        return "; ".join(notes)


def _reference() -> tuple[nn.Module, Tensor]:
    """Return the reference network (14 M MACs) and its input: the same everywhere and for every task."""
    layers: list[nn.Module] = []
    for inner, outer, stride in ((16, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)):
        layers += [nn.Conv2d(inner, outer, 3, stride, 1), nn.ReLU()]
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.01)
    return network, torch.full((1, 16, 32, 32), 0.5)


@contextmanager
def _threads(count: int, device: torch.device) -> Iterator[None]:
    """Let torch use `count` threads on a CPU, and as many as before afterwards."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(before)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _seconds_cuda(run: Callable[[], Any]) -> float:
    """Return the seconds from the launch of `run` to its last kernel's end, launch overhead included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return median, third - first


def _unrest(values: Sequence[float]) -> float:
    median, spread = _median_and_spread(values)
    return spread / median
