"""The workers of a run: started as the study asks, several students in each where that pays, and waited for."""

from __future__ import annotations

from typing import Any

import torch

from kdnas.controller.events import Advanced, Note, Observer
from kdnas.controller.packed import PackedExecutor, PackedWorkplan
from kdnas.controller.preparation import Opened
from kdnas.executors import EXECUTORS, Executor, Finished
from kdnas.workshop.jobs import Job, Result

_POLL_S = 0.5


def start_executor(opened: Opened, observe: Observer) -> Executor[Job, Result]:
    """Return the study's executor with its workers starting; `observe` is told where to watch them."""
    section = opened.config.executor
    offered = {
        "workers": opened.workers,
        "threads": opened.threads,
        "time_limit_s": opened.config.budget.trial_time_limit_s,
        "devices": torch.cuda.device_count() if opened.device.type == "cuda" else 0,
    }
    taken = {name: value for name, value in offered.items() if name in EXECUTORS.options(section.type).model_fields}
    size = _measured_size(opened, observe) if section.per_device == "auto" else section.per_device
    plan = opened.workplan if size == 1 else PackedWorkplan(opened.workplan)
    built: Executor[Any, Any] = EXECUTORS.build(section.type, plan, **{**taken, **section.options})
    if built.notice:
        observe(Note(built.notice))
    return built if size == 1 else PackedExecutor(built, size, time_limit_s=opened.config.budget.trial_time_limit_s)


def _measured_size(opened: Opened, observe: Observer) -> int:
    """Return how many students each worker should train at once, noted in the run with what was measured."""
    packing = opened.evaluator.at_once()
    if packing.words:
        opened.record.set_note("packing", packing.words)
        observe(Note(packing.words))
    return packing.size


def wait(executor: Executor[Job, Result], observe: Observer) -> list[Finished[Result]]:
    """Return the jobs that ended within half a second; `observe` is told what workers said meanwhile."""
    finished = executor.wait(_POLL_S)
    for line in executor.take_notes():
        observe(Note(line, passing=True))
    for key, done in executor.take_progress().items():
        observe(Advanced(key, done))
    return finished
