"""A run's scores depend neither on the number of workers nor on how busy the machine is, and its lock says why."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml

from kdnas.controller.events import Note
from kdnas.controller.preparation import Opened, prepare_study
from kdnas.controller.runner import Search
from kdnas.errors import ConfigError, RunFolderError
from kdnas.record.lock import read_lock, this_machine
from kdnas.record.run_folder import LOCK_FILE, controller_lock
from kdnas.study.loading import load_study
from kdnas.workshop import numerics
from kdnas.workshop.jobs import final_job, search_job

CPU = torch.device("cpu")
AUTO = ("training.precision=auto", "executor={type: local}")


def prepare(study: Path, folder: Path, *overrides: str, notes: list[str] | None = None) -> Opened:
    def observe(event: object) -> None:
        if notes is not None and isinstance(event, Note):
            notes.append(event.text)

    return prepare_study(
        load_study(study, [*AUTO, *overrides]),
        folder,
        data_root=Path("nowhere"),
        cache=Path(os.environ["KDNAS_CACHE"]),
        device=CPU,
        observe=observe,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def locked(study, tmp_path_factory):
    """A run that is begun and has no trial yet."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    with controller_lock(folder):
        prepare(study, folder)
    return folder


def scores(study: Path, folder: Path, *overrides: str) -> dict[str, tuple[object, ...]]:
    with controller_lock(folder):
        opened = prepare(study, folder, *overrides)
        run = Search(opened, lambda event: None).run()
    return {
        trial.arch.arch_id: (dict(trial.values), [(r.seed, r.score, r.test_score) for r in trial.repeats])
        for trial in run.trials
    }


@pytest.mark.slow
def test_one_worker_two_workers_and_a_busy_machine_give_equal_tables(study, tmp_path):
    alone = scores(study, tmp_path / "one", "executor.workers=1")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        together = scores(study, tmp_path / "two", "executor.workers=2")
        again = scores(study, tmp_path / "again", "executor.workers=1")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert alone == together == again
    assert len(alone) == 4


def test_a_score_does_not_depend_on_the_threads_that_its_process_has(locked, study):
    with controller_lock(locked):
        opened = prepare(study, locked)
    evaluator = opened.workplan()
    arch = evaluator.arch(opened.space.random(np.random.default_rng(1)))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(evaluator(search_job(opened.config, arch, {})).values["accuracy"])
            results.append(evaluator(final_job(opened.config, 0, arch, {}, 0)).test)
    finally:
        torch.set_num_threads(before)
    assert results[:2] == results[2:]


def test_the_lock_says_what_is_computed_in_and_every_job_too(locked, study, tmp_path):
    decided = read_lock(locked).config.training
    assert (decided.precision, decided.threads) == (
        "bfloat16" if numerics.bfloat16_is_native(CPU) else "float32",
        1,
    )
    assert isinstance(decided.fused_norms, bool)
    with controller_lock(locked):
        opened = prepare(study, locked, "executor.workers=3")
    assert opened.threads == 1  # whatever the number of workers
    arch = opened.evaluator.arch(opened.space.random(np.random.default_rng(0)))
    job = search_job(opened.config, arch, {})
    assert job.recipe.training.precision == decided.precision
    assert opened.workplan.context.config.training == opened.config.training


def test_another_machine_keeps_what_is_locked_and_says_what_differs(locked, study, monkeypatch):
    decided = read_lock(locked).config.training
    other = decided.precision == "float32"
    monkeypatch.setattr("kdnas.training.numerics.bfloat16_is_native", lambda device: other)
    monkeypatch.setattr(numerics, "bfloat16_is_native", lambda device: other)
    here = dataclasses.replace(this_machine(), processor="Another 9000")
    monkeypatch.setattr(numerics, "this_machine", lambda: here)
    monkeypatch.setattr("kdnas.workshop.evaluators.this_machine", lambda: here)
    notes: list[str] = []
    with controller_lock(locked):
        opened = prepare(study, locked, notes=notes)
    assert opened.config.training.precision == decided.precision
    assert any("Another 9000" in note and decided.precision in note for note in notes)
    assert any("emulates bfloat16" in note for note in notes) is not other
    assert [there.processor for there in read_lock(locked).resumed_on] == ["Another 9000"]


def test_workers_on_another_processor_end_a_run_that_measures_and_its_controller_may_be_anywhere(
    study, tmp_path, monkeypatch
):
    measures = "objectives=[accuracy,latency_ms]", "costs={latency_ms: {repeats: 5}}"
    with controller_lock(tmp_path / "run"):
        opened = prepare(study, tmp_path / "run", *measures)
        monkeypatch.setattr("kdnas.targets.processor_name", lambda: "Another 9000")
        words = f"costs.latency_ms: the run measures on {this_machine().processor}, and this is Another 9000"
        again = prepare(study, tmp_path / "run", *measures)
        assert again.run.lock.calibrations == opened.run.lock.calibrations
        with pytest.raises(ConfigError, match=re.escape(words)):
            again.workplan()


@pytest.mark.parametrize("change", ["training.precision={}", "training.threads=2", "executor.threads=2"])
def test_stating_something_else_is_refused_with_both_values(locked, study, change):
    decided = read_lock(locked).config.training.precision
    with controller_lock(locked), pytest.raises(RunFolderError) as refused:
        prepare(study, locked, change.format("float32" if decided == "bfloat16" else "bfloat16"))
    assert any("->" in problem.what for problem in refused.value.problems)
    assert read_lock(locked).config.training.precision == decided


def test_a_run_from_before_this_was_recorded_goes_on_and_says_so(study, tmp_path):
    folder = tmp_path / "old"
    with controller_lock(folder):
        prepare(study, folder)
    lock = yaml.safe_load((folder / LOCK_FILE).read_text())
    training = lock["config"]["training"]
    training["precision"] = "auto"
    del training["threads"], training["fused_norms"]
    (folder / LOCK_FILE).write_text(yaml.safe_dump(lock, sort_keys=False))
    notes: list[str] = []
    for expected in (True, False):
        notes.clear()
        with controller_lock(folder):
            opened = prepare(study, folder, notes=notes)
        assert any("before kdnas recorded" in note for note in notes) is expected
        assert opened.config.training.threads == 1
    assert read_lock(folder).config.training.precision != "auto"
