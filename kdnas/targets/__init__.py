"""Targets: the ways in which a student can be run on this machine, to measure its latency, memory and energy.

Shapes: B samples, C channels, H and W height and width. Networks are float32.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdnas.core.measurement import Measurement
from kdnas.core.task import TaskSpec
from kdnas.machine import processor_name
from kdnas.nn.timing import Clock, Run
from kdnas.registry import Registry


@dataclass(frozen=True)
class Missing:
    """A quantity that cannot be measured here, and why: no estimate stands in for it."""

    reason: str


@dataclass(frozen=True)
class EnergyCounter:
    """A counter of consumed energy. `spent_mj(start, end)` is the energy in mJ between two of its readings."""

    what: str
    """What it counts, in words: which chips, and by what means."""
    read: Callable[[], Any]
    spent_mj: Callable[[Any, Any], float]


class Target(ABC):
    """One way to run a network. Built from its options alone; raises ConfigError where this machine cannot do it."""

    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """The options under which it is measured unless the user states others."""
    takes_onnx: ClassVar[bool] = False
    """Whether `run` and `peak_memory_bytes` also take the path of an ONNX file."""
    clock: Clock = staticmethod(time.perf_counter)
    batch_size: int
    where: str
    """The circumstances in words: device, threads, batch, precision."""

    @property
    def device_name(self) -> str:
        """What it runs on, by its maker's name: measurements of different devices are not comparable."""
        return processor_name()

    @abstractmethod
    def ready(self) -> AbstractContextManager[None]:
        """Return a context within which `run` and what it returns may be called."""

    @abstractmethod
    def run(self, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> Run:
        """Return a function that runs a copy of `network` once on `inputs` [B, ...], to the end."""

    @abstractmethod
    def peak_memory_bytes(self, network: nn.Module | Path, inputs: tuple[Tensor, ...]) -> Measurement | Missing:
        """Return the peak bytes of one pass on `inputs` [B, ...]: parameters, buffers, inputs and live activations."""

    @abstractmethod
    def energy_counter(self) -> EnergyCounter | Missing:
        """Return a counter of what runs on this target consume, or why there is none."""


def noise(shape: tuple[int, ...]) -> Tensor:
    """Return an input of `shape` in [0, 1), always the same; torch's global generator is left alone."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def given(spec: TaskSpec, batch_size: int) -> tuple[Tensor, ...]:
    """Return inputs of the task for measuring, always the same: noise, any tokens, masks that leave out none."""
    made = []
    for taken in spec.inputs:
        shape = (batch_size, *taken.shape)
        if taken.kind in ("pixels", "floats"):
            made.append(noise(shape))
        elif taken.kind == "mask":
            made.append(torch.ones(shape, dtype=torch.int64))
        else:
            made.append(torch.randint(0, taken.levels, shape, generator=torch.Generator().manual_seed(0)))
    return tuple(made)


TARGETS: Registry[type[Target]] = Registry("target", __name__, Target)
"""Members: Target classes, `(*, options)`."""
