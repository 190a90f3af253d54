"""Inference latency, as a ratio to a fixed reference network so that drift of the machine cancels.

Student and reference run alternately (`kdnas.nn.timing`): `value = median ratio * reference_ms`, where `reference_ms`
was taken once, at the start of the study.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from kdnas.core.latency_table import LatencyTable, TableFit
from kdnas.core.measurement import Calibration, Measurement
from kdnas.core.objective import Quantity
from kdnas.core.task import TaskSpec
from kdnas.costs import COSTS, MeasuredCost
from kdnas.costs._steps import step_of
from kdnas.errors import ConfigError, Problem, TrialError
from kdnas.nn.timing import CALM, Timing, calmest, interleaved, median_and_spread, reference_network
from kdnas.plugins import SPELLING
from kdnas.targets import TARGETS, Target

_DRIFT = 3.0
"""Factor between the reference now and at calibration from which on it is reported in the context."""


def _known_target(name: str) -> str:
    if name != "auto" and TARGETS.missing(name):
        raise ValueError(f"is no target; there are auto, {', '.join(TARGETS.names())}, {SPELLING}")
    return name


@dataclass(frozen=True)
class LatencyCalibration(Calibration):
    """The reference network's median time on `device`, and the table that prices students where the study asks for one.

    `device` is as its maker calls it; empty in runs that did not note it.
    """

    reference_ms: float
    table: LatencyTable | None = None
    verdict: TableFit | None = None
    device: str = ""


@COSTS.register
class LatencyMs(MeasuredCost):
    """Median latency of one forward pass in milliseconds, interleaved with a reference network.

    `target` is where it runs (auto: PyTorch on the study's device); `threads` are those of a CPU; `warmup` passes are
    not timed. Texts are as long as the data's longest, or of `length` tokens; with `per: token` it is the latency of
    the token that a language model writes after so many, whose keys and values it keeps where it can. With `table:
    auto` the search prices students by an additive latency table, learned from measured ones when the run is prepared,
    and measures only its finalists.
    """

    quantity = Quantity("latency_ms", "ms", "minimize", "measured")
    calibration = LatencyCalibration

    def __init__(
        self,
        device: torch.device,
        *,
        target: Annotated[str, AfterValidator(_known_target)] = "auto",
        threads: Annotated[int, Field(ge=1, le=1024)] = 1,
        batch_size: Annotated[int, Field(ge=1, le=65536)] = 1,
        repeats: Annotated[int, Field(ge=5, le=100_000)] = 30,
        warmup: Annotated[int, Field(ge=1, le=100_000)] = 5,
        table: Literal["auto"] | None = None,
        length: Annotated[int, Field(ge=1)] | None = None,
        per: Literal["pass", "token"] = "pass",
    ):
        super().__init__(device)
        name = device.type if target == "auto" else target
        offered = {"threads": threads, "batch_size": batch_size}
        if device.type == "cuda":
            offered["device"] = str(device)  # type: ignore[assignment]
        taken = {key: value for key, value in offered.items() if key in TARGETS.options(name).model_fields}
        self.target: Target = TARGETS.build(name, **taken)
        self.table = table
        self._length, self._per = length, per
        if per == "token" and (table is not None or self.target.takes_onnx):
            what = "a token's latency is measured, by PyTorch"
            raise ConfigError(Problem("costs.latency_ms.per", what, "neither table nor a target of ONNX files"))
        self._repeats, self._warmup = repeats, warmup

    def calibrate(self, task: TaskSpec) -> LatencyCalibration:
        """Return `reference_ms`, the median time of one pass of the reference network."""
        self._measured(task)
        with self.target.ready():
            timing = interleaved(
                [], self.reference(), rounds=3 * self._repeats, warmup=self._warmup, clock=self.target.clock
            )
        return LatencyCalibration(timing.reference_ms, device=self.target.device_name)

    def unlike(self, calibration: Calibration) -> str:
        """Return in words that this is another device than that of the calibration; empty where it is not."""
        known = calibration.device if isinstance(calibration, LatencyCalibration) else ""
        here = self.target.device_name
        return f"the run measures on {known}, and this is {here}" if known not in ("", here) else ""

    def measure(self, module: nn.Module, task: TaskSpec, calibration: Calibration) -> Measurement:
        """Return the median latency of `module` and its interquartile range, in ms.

        Raises TrialError on another device than that of the calibration.
        """
        if unlike := self.unlike(calibration):
            raise TrialError(f"its latency cannot be compared: {unlike}")
        known = calibration if isinstance(calibration, LatencyCalibration) else self.calibrate(task)
        reference_ms = known.reference_ms
        with self.target.ready():
            run = self.target.run(*self._work(module, task))
            timing = calmest(
                [run], self.reference(), rounds=self._repeats, warmup=self._warmup, clock=self.target.clock
            )
        median, spread = median_and_spread(timing.ratios(0))
        return Measurement(
            median * reference_ms, spread * reference_ms, self._repeats, self._context(timing, reference_ms, task)
        )

    def _work(self, module: nn.Module, task: TaskSpec) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return what is run, and what it is given."""
        measured = self._measured(task)
        return step_of(module, measured, self.target.batch_size, self._per)

    def _measured(self, task: TaskSpec) -> TaskSpec:
        """Return the task at the length that it is measured at. Raises ConfigError where its samples have none."""
        if self._length is None:
            return task
        if task.inputs[0].kind != "tokens":
            what = f"is for tokens, and the samples are {task.samples}"
            raise ConfigError(Problem("costs.latency_ms.length", what))
        return task.at(min(self._length, task.size))

    def reference(self) -> Any:
        """Return a function that runs the reference network once on the target."""
        network, images = reference_network()
        return self.target.run(network, (images,))

    def _context(self, timing: Timing, reference_ms: float, task: TaskSpec) -> str:
        where, device = self.target.where, self.target.device_name
        notes = [where if device in where else f"{where}, on {device}"]
        if task.inputs[0].kind == "tokens":
            size = self._measured(task).size
            notes.append(f"{size} tokens" if self._per == "pass" else f"one token after {size - 1}")
        if timing.unrest > CALM:
            notes.append(f"unsteady: the reference varied by {timing.unrest:.0%}")
        change = timing.reference_ms / reference_ms
        if not 1 / _DRIFT <= change <= _DRIFT:
            notes.append(f"the reference took {change:.2g} times as long as at calibration")
        return "; ".join(notes)
