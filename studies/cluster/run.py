"""What searching on a cluster costs: `python studies/cluster/run.py [--workers 1 2 4 8] [--trials 10000]`.

Writes results/efficiency.json (as many searches as there are numbers of workers, half a minute each beside their start)
and results/record.json (one record of many trials; a few minutes). `--workers 0` or `--trials 0` leaves one out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

import kdnas
from kdnas.controller.events import Note, TrialEnded, TrialStarted
from kdnas.core.arch import Arch
from kdnas.core.fidelity import Fidelity
from kdnas.machine import usable_cores
from kdnas.record.storage import load_run, record_of
from kdnas.report.page import write_report
from kdnas.session import search_study
from kdnas.study.loading import LoadedStudy, load_study

HERE = Path(__file__).parent
SECONDS = 5.0
ROUNDS = 6
"""Trials of each worker."""
GOALS = {"efficiency": 0.9, "controller_share": 0.02, "ask_s": 0.5, "report_s": 10.0}


class Watch:
    """An observer that notes when trials begin and end, and how much the controller has computed by then."""

    def __init__(self) -> None:
        self.ended: list[tuple[float, float]] = []
        self.started: list[float] = []
        self.notes: list[str] = []

    def __call__(self, event: object) -> None:
        """Take in one event."""
        if isinstance(event, TrialStarted):
            self.started.append(time.monotonic())
        elif isinstance(event, TrialEnded):
            self.ended.append((time.monotonic(), time.process_time()))
        elif isinstance(event, Note):
            self.notes.append(event.text)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--executor", default="ray", choices=("ray", "local"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if wanted := [workers for workers in options.workers if workers]:
        rows = [efficiency(workers, options.executor) for workers in wanted]
        name = "efficiency.json" if options.executor == "ray" else f"efficiency_{options.executor}.json"
        write(options.out / name, {"executor": options.executor, "trial_seconds": SECONDS, "rows": rows})
    if options.trials:
        write(options.out / "record.json", record(options.trials))


def efficiency(workers: int, executor: str) -> dict[str, Any]:
    """Return how busy `workers` were kept, from when the first trial of each had ended."""
    settings = {
        "executor.type": executor,
        "executor.workers": workers,
        "budget.trials": workers * ROUNDS,
        "evaluator.options.seconds": SECONDS,
        "sampler": "random",  # what a proposal costs is measured apart
    }
    if executor == "ray":
        settings["executor.address"] = "local"
    watch = Watch()
    began = time.monotonic()
    search(load_study(HERE, [f"{key}={value}" for key, value in settings.items()]), watch)
    (first, busy_first), (last, busy_last) = watch.ended[workers - 1], watch.ended[-1]
    done = len(watch.ended) - workers
    row = {
        "workers": workers,
        "trials": len(watch.ended),
        "efficiency": round(done * SECONDS / (workers * (last - first)), 4),
        "controller_share": round((busy_last - busy_first) / (last - first), 4),
        "start_s": round(watch.started[0] - began, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(row), flush=True)
    return row


def search(study: LoadedStudy, watch: Watch, folder: Path | None = None) -> None:
    """Run a search of `study`, in a folder that is removed unless one is given."""
    with tempfile.TemporaryDirectory() as scratch:
        search_study(study, folder or Path(scratch, "run"), data_root=HERE, observe=watch)


def record(trials: int) -> dict[str, Any]:
    """Return how long a proposal and a report take in a record of so many trials: seconds, and those of the CPU."""
    settings = ["sampler=auto", "executor.type=local", "executor.workers=1", "evaluator.options.seconds=0"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        search(load_study(HERE, [*settings, "budget.trials=2"]), Watch(), folder)
        fill(folder, trials - 2)
        began, busy = time.monotonic(), time.process_time()
        watch = Watch()
        asked = 4
        search(load_study(HERE, [*settings, f"budget.trials={trials + asked}"]), watch, folder)
        proposals = [trial.profile["proposal"] for trial in load_run(folder).trials[-asked:]]
        between = [started - ended for (ended, _), started in zip(watch.ended, watch.started[1:], strict=False)]
        whole, computed = time.monotonic() - began, time.process_time() - busy
        cpu = [later - earlier for (_, earlier), (_, later) in itertools.pairwise(watch.ended)]
        began, busy = time.monotonic(), time.process_time()
        run = load_run(folder)
        loaded, load_busy = time.monotonic() - began, time.process_time() - busy
        began, busy = time.monotonic(), time.process_time()
        write_report(run)
        found = {
            "trials": trials,
            "ask_s": round(float(np.median(proposals)), 3),
            "ask_worst_s": round(max(proposals), 3),
            "told_to_next_start_s": round(float(np.median(between)), 3),
            "told_to_told_cpu_s": round(float(np.median(cpu)), 3),
            "load_s": round(loaded, 2),
            "load_cpu_s": round(load_busy, 2),
            "report_s": round(time.monotonic() - began, 2),
            "report_cpu_s": round(time.process_time() - busy, 2),
            "resume_and_4_trials_s": round(whole, 1),
            "resume_and_4_trials_cpu_s": round(computed, 1),
            "load": round(os.getloadavg()[0], 1),
        }
    print(json.dumps(found), flush=True)
    return found


def fill(folder: Path, count: int) -> None:
    """Write `count` further students with the scores of the study's own function into the record of `folder`."""
    from sleeping import price, score

    run = load_run(folder)
    kept = record_of(run)
    pattern = next(trial for trial in kept.study.get_trials(deepcopy=False) if "result" in trial.user_attrs)
    names = [choice.name for choice in run.lock.space.choices]
    generator = np.random.default_rng(0)
    seen = {trial.arch.arch_id for trial in run.trials}

    def add() -> None:
        left = count
        while left:
            choices = {name: int(generator.integers(1, 5)) for name in names}
            arch = Arch.of(run.lock.space.name, choices)
            if arch.arch_id in seen:
                continue
            seen.add(arch.arch_id)
            left -= 1
            values = {**score(choices, 1, 1.0, 0, 0.0), **price(choices, 0.0)}
            kept.study.add_trial(
                optuna.trial.create_trial(
                    params=choices,
                    distributions={name: CategoricalDistribution((1, 2, 3, 4)) for name in names}
                    if not pattern.distributions
                    else dict(pattern.distributions),
                    values=[values["accuracy"], values["macs"]],
                    user_attrs={
                        **pattern.user_attrs,
                        "arch_id": arch.arch_id,
                        "arch": arch.canonical_json,
                        "fidelity": Fidelity(1).as_dict(),
                        "result": {**pattern.user_attrs["result"], "values": values},
                    },
                )
            )

    kept.at_once(add)


def write(file: Path, found: dict[str, Any]) -> None:
    """Write what was found, on which machine, beside the goals."""
    import ray

    machine = {
        "cores": usable_cores(),
        "python": platform.python_version(),
        "ray": ray.__version__,
        "optuna": optuna.__version__,
        "kdnas": kdnas.__version__,
    }
    file.write_text(json.dumps({"machine": machine, "goals": GOALS, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
