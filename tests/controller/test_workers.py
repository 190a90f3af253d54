"""The workers of a run: how many students each trains at once, and what the run tells of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from audited_run import InProcess, write_study

from kdnas.controller.events import Note
from kdnas.controller.preparation import prepare_study
from kdnas.controller.runner import Search
from kdnas.controller.workers import PackedExecutor, start_executor
from kdnas.executors import EXECUTORS
from kdnas.record.run_folder import controller_lock
from kdnas.record.storage import load_run
from kdnas.report.figures import time_figure
from kdnas.study.loading import load_study
from kdnas.training.packing import Packing
from kdnas.workshop.evaluators.table import Table

SLOWED = "steps ran one kernel at a time: their capture as a CUDA graph failed (no memory)"


@pytest.fixture
def events():
    return []


@pytest.fixture
def opened(tmp_path, events, monkeypatch):
    """A study on a table that is asked to measure how many jobs a worker takes."""
    monkeypatch.setattr(EXECUTORS, "build", lambda name, plan, **options: InProcess(plan))
    study = load_study(write_study(tmp_path, budget={"trials": 5}, final={"seeds": 1}), ["executor.per_device=auto"])
    with controller_lock(tmp_path / "run"):
        yield prepare_study(
            study, tmp_path / "run", data_root=tmp_path, cache=tmp_path, device=torch.device("cpu"),
            observe=events.append,
        )  # fmt: skip


def test_where_nothing_is_measured_nothing_is_told(opened, events):
    assert not isinstance(start_executor(opened, events.append), PackedExecutor)
    assert opened.snapshot().packing == ""
    assert not any(isinstance(event, Note) and "at a time" in event.text for event in events)


def test_the_measured_number_of_students_is_recorded_and_shown(opened, events, monkeypatch):
    measured = Packing(2, {1: 100.0, 2: 190.0, 4: 195.0})
    monkeypatch.setattr(Table, "at_once", lambda self: measured)
    executor = start_executor(opened, events.append)
    assert isinstance(executor, PackedExecutor)
    assert executor.free == 2
    assert Note(measured.words) in events
    assert opened.snapshot().packing == measured.words


def test_what_slows_trials_is_recorded_told_once_and_shown(opened, events, monkeypatch):
    scores = Table.__call__

    def slowed(self, job):
        return dataclasses.replace(scores(self, job), notes=(SLOWED,))

    monkeypatch.setattr(Table, "__call__", slowed)
    monkeypatch.setattr(Table, "at_once", lambda self: Packing(2, {1: 1.0, 2: 2.0}))
    Search(opened, events.append).run()
    run = load_run(opened.run.folder)
    assert [trial.notes for trial in run.trials] == [(SLOWED,)] * 5
    printed = [event.text for event in events if isinstance(event, Note) and SLOWED in event.text]
    assert printed == [f"trial {run.trials[0].number}: {SLOWED}"]
    assert time_figure(run).caption.endswith(f"2: 2). In 5 trials {SLOWED}.")
