"""From a study on paper to one that can run: everything is opened, checked and locked, and nothing is left behind when
something is wrong.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from kdnas.core.seeds import derive_seed
from kdnas.errors import RunFolderError
from kdnas.study.evaluator import Bench, Workplan, quantities, refuse_unmeasurable, violations
from kdnas.study.events import Note, Observer
from kdnas.study.feasibility import PricedArch, nearest_miss, reference_costs, sample_prices
from kdnas.study.loading import LoadedStudy
from kdnas.study.records import TeacherReport
from kdnas.study.run_folder import LOCK_FILE, check_identity, identity, machine, read_lock, write_lock
from kdnas.study.runner import Opened
from kdnas.study.spaces import arch_of
from kdnas.study.storage import Record, refreshed, run_of_lock
from kdnas.study.teacher_check import report_teacher

_SMALLEST_TRIED = 5


def prepare_study(
    study: LoadedStudy, folder: Path, *, data_root: Path, cache: Path, device: torch.device, observe: Observer
) -> Opened:
    """Return `study`, ready to run in `folder`: a new run, or the one that is there.

    The caller holds the folder's controller lock. Raises InputError where data, teacher, constraints
    or the run folder are wrong; nothing has been written then.
    """
    config, space = study.config, study.space
    locked = read_lock(folder) if (folder / LOCK_FILE).exists() else None
    bench = Bench.open(
        config,
        space.family,
        data_root=data_root,
        cache=cache,
        device=device,
        say=lambda line: observe(Note(line)),
    )
    this = identity(config, space, data=bench.data.fingerprint, teacher=bench.teacher.fingerprint)
    if locked is not None:
        # What was measured on one device says nothing beside what is measured on another.
        where = (str(device), locked.get("device")) if bench.measured_costs else ("", "")
        check_identity(folder, {**locked["identity"], "device": where[1]}, {**this, "device": where[0]})
        lock = {**locked, "config": config.model_dump(mode="json")}
    else:
        lock = {"identity": this, **_new_lock(study, bench, observe)}
    if locked is None:
        write_lock(folder, lock)
    run = run_of_lock(folder, lock)
    if not (folder / "study.db").exists():
        if locked is not None and (folder / "trials.csv").exists():
            raise RunFolderError(f"{folder} has lost its record study.db; restore it or choose another --out")
        Record.create(folder, config.name, run.objectives)
    record = Record.open(folder, config.name, run.objectives)
    if locked is not None and lock["config"] != locked["config"]:
        write_lock(folder, lock)  # once the record has shown itself to be this run's
    workplan = Workplan(config, space.family, folder, data_root, cache, str(device), lock["calibrations"])
    return Opened(config, space, bench, record, workplan, refreshed(run, record))


def _new_lock(study: LoadedStudy, bench: Bench, observe: Observer) -> dict[str, Any]:
    """Measure what a new run needs once, and return everything of its lock file but the identity."""
    config = study.config
    sample = sample_prices(
        study.space,
        lambda assignment: arch_of(study.space, assignment, bench.family),
        bench.price,
        constraints=config.bounds,
        seed=derive_seed(config.seed, "feasibility"),
    )
    observe(Note("measuring the teacher"))
    calibrations = {name: cost.calibrate(bench.data.task) for name, cost in bench.measured_costs.items()}
    _check_measured(study, bench, sample, calibrations)
    teacher = report_teacher(
        bench.teacher,
        bench.data,
        bench.validation_indices,
        device=bench.device,
        costs=bench.measured_costs,
        calibrations=calibrations,
    )
    costs = [name for name in config.objectives if name != "accuracy"]
    reference = {
        "accuracy": chance(bench),
        **reference_costs(sample, config.bounds, teacher.values, costs),
    }
    return {
        "config": config.model_dump(mode="json"),
        "quantities": [dataclasses.asdict(quantity) for quantity in quantities(config).values()],
        "teacher": _plain(teacher),
        "reference_point": {name: reference[name] for name in config.objectives},
        "calibrations": calibrations,
        "data": {
            "name": bench.data.name,
            "class_names": list(bench.data.class_names),
            "input_shape": list(bench.data.task.input_shape),
            "training_images": len(bench.train_indices),
            "validation_images": len(bench.validation_indices),
            "test_images": len(bench.data.test),
            "channel_mean": list(bench.data.channel_mean),
            "channel_std": list(bench.data.channel_std),
        },
        "device": str(bench.device),
        "machine": machine(),
    }


def chance(bench: Bench) -> float:
    """Return the accuracy of always answering the validation split's largest class."""
    labels = bench.data.train.labels[bench.validation_indices]
    return max(int((labels == label).sum()) for label in range(bench.data.task.num_classes)) / len(labels)


def _check_measured(
    study: LoadedStudy, bench: Bench, sample: list[PricedArch], calibrations: dict[str, dict[str, Any]]
) -> None:
    """Measure the smallest feasible students. Raises ConfigError when none of them meets the measured constraints."""
    bounds = study.config.bounds
    if not {bound.name for bound in bounds} & set(bench.measured_costs):
        return
    feasible = [candidate for candidate in sample if not violations(candidate.costs, bounds)]
    tried = []
    for candidate in sorted(feasible, key=lambda candidate: candidate.costs["macs"])[:_SMALLEST_TRIED]:
        measured = bench.measure(bench.family.build(candidate.arch, bench.data.task).to(bench.device), calibrations)
        refuse_unmeasurable(measured)
        values = {**candidate.costs, **{name: measurement.value for name, measurement in measured.items()}}
        broken = [bound for bound in bounds if bound.violation(values[bound.name]) > 0]
        if not broken:
            return
        excess = sum(bound.violation(values[bound.name]) / max(abs(bound.bound), 1e-12) for bound in broken)
        tried.append((excess, candidate.arch, values))
    _, arch, values = min(tried, key=lambda entry: entry[0])
    raise nearest_miss(study.space, bounds, arch, values)


def _plain(teacher: TeacherReport) -> dict[str, Any]:
    return {**dataclasses.asdict(teacher), "notes": list(teacher.notes), "values": dict(teacher.values)}
