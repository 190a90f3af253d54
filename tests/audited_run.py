"""A study on an invented table whose truth is known, its run written without any worker, and an executor in process."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml

from kdnas.controller.preparation import prepare_study
from kdnas.core.fidelity import Fidelity
from kdnas.executors import Executor, Finished
from kdnas.record.records import Result, RunRecord
from kdnas.record.storage import distributions, load_run
from kdnas.study.loading import load_study
from kdnas.workshop.jobs import Job, search_job

BRIEF, FULL = Fidelity(3), Fidelity(30)
CHOICES = {"depth1": [1, 2, 3, 4], "depth2": [1, 2, 3, 4], "width": [8, 16, 24]}


def write_study(folder: Path, **changed: Any) -> Path:
    """Write a study of 48 students to `folder`: brief scores after 3 epochs, two trainings of 30."""
    rng = np.random.default_rng(11)
    rows = ["depth1,depth2,width,brief,full1,full2,macs,params"]
    for depth1, depth2, width in itertools.product(*CHOICES.values()):
        truth = 60 + 4 * np.log(depth1 + depth2) + 0.4 * width + 1.5 * rng.normal()
        brief, full1, full2 = truth - 20 + 2 * rng.normal(), truth + 0.3 * rng.normal(), truth + 0.3 * rng.normal()
        macs, params = (depth1 + depth2) * width**2 * 1000, (depth1 + 4 * depth2) * width**2
        rows.append(f"{depth1},{depth2},{width},{brief:.4f},{full1:.4f},{full2:.4f},{macs},{params}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    (folder / "space.yaml").write_text(yaml.safe_dump({"name": "small", "choices": CHOICES}))
    study = {
        "name": "audited",
        "evaluator": {
            "type": "table",
            "file": "table.csv",
            "key": "{depth1},{depth2},{width}",
            "key_columns": list(CHOICES),
            "values": {
                "accuracy": {"column": ["full1", "full2"], "scale": 0.01},
                "macs": {"column": "macs"},
                "params": {"column": "params"},
            },
            "shorter": [{"epochs": BRIEF.epochs, "column": "brief", "scale": 0.01}],
            "full_epochs": FULL.epochs,
        },
        "space": "space.yaml",
        "training": {"epochs": BRIEF.epochs},
        "executor": {"type": "local", "workers": 1},
        "final": {"seeds": 2, "epochs": FULL.epochs},
        **changed,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def write_run(folder: Path, *, trials: int = 48, **changed: Any) -> RunRecord:
    """Return a run in `folder`/run whose first `trials` students, in a random order, are scored, none retrained."""
    study = load_study(write_study(folder, **changed))
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    opened = prepare_study(
        study, run, data_root=folder, cache=folder, device=torch.device("cpu"), observe=lambda event: None
    )
    assignments = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
    order = np.random.default_rng(5).permutation(len(assignments))[:trials]
    frozen = []
    for index in order:
        arch = opened.evaluator.arch(assignments[index])
        job = search_job(study.config, arch, {})
        result = dataclasses.replace(opened.evaluator(job), train_seconds=10.0)
        attributes = {"arch_id": arch.arch_id, "arch": arch.canonical_json, "tuned": {}, "result": result.as_dict()}
        values = [result.values[objective.name] for objective in opened.run.objectives]
        attributes["fidelity"] = job.fidelity.as_dict()
        frozen.append(
            optuna.trial.create_trial(
                values=values,
                params=assignments[index],
                distributions=distributions(study.space, {}),
                user_attrs=attributes,
            )
        )
    opened.record.study.add_trials(frozen)
    return opened.snapshot()


def copy_run(run: RunRecord, folder: Path) -> RunRecord:
    """Return a copy of a run of `write_run` that lies in `folder`/run, its table beside it."""
    shutil.copytree(run.folder.parent, folder, dirs_exist_ok=True)
    return load_run(folder / "run")


class InProcess(Executor[Job, Result]):
    """Runs a job when it is submitted; after `stop_after` of them the next is a Ctrl-C."""

    def __init__(self, make_evaluate: Any, stop_after: int = 10**9, broken: Sequence[str] = ()):
        super().__init__(make_evaluate)
        self._evaluate = make_evaluate()
        self._ended: list[Finished[Result]] = []
        self._stop_after = stop_after
        self._broken = broken
        self.jobs: list[Job] = []

    @property
    def free(self) -> int:
        return 1 - len(self._ended)

    @property
    def running(self) -> int:
        return len(self._ended)

    def submit(self, key: str, job: Job, *, time_limit_s: float | None = None) -> None:
        if len(self.jobs) >= self._stop_after:
            raise KeyboardInterrupt
        self.jobs.append(job)
        broken = key in self._broken
        self._ended.append(Finished(key, failure="broke") if broken else Finished(key, self._evaluate(job)))

    def wait(self, timeout_s: float) -> list[Finished[Result]]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        self._ended = []
