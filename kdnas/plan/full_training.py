"""Full training of one student by its train.yaml: resumable after any interruption, finished once.

A training is a list of steps (`kdnas.plan.training_steps`): a plain one has a single step, a schedule may have more.
The folder holds `training.lock.yaml` (exactly what is being trained), `history.csv` (one row an epoch) and the
checkpoint of the last whole epoch while it runs, with a schedule `schedule.yaml` and a folder of each step instead, and
at the end the student's files and `result.json`, written last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kdnas.core.words import counted
from kdnas.errors import ConfigError, Problem
from kdnas.machine import usable_cores
from kdnas.plan.exporting import assemble, check_formats, data_card, load_network, write_formats
from kdnas.plan.schedules import DistilStep, Step, TrainingSchedule, write_training_schedule
from kdnas.plan.train_file import TrainFile
from kdnas.plan.training_folder import (
    CHECKPOINT_FILE,
    GUARD_FILE,
    RESULT_FILE,
    FullTraining,
    claim,
    locked_training,
    read_result,
)
from kdnas.plan.training_ground import Ground, open_ground
from kdnas.plan.training_steps import Progress, StepResult, follow
from kdnas.record.products import file_sha256
from kdnas.record.run_folder import exclusively, fingerprint, write_text
from kdnas.students import STUDENTS
from kdnas.study.config import ExportConfig
from kdnas.training.numerics import computing
from kdnas.training.schedule_file import SCHEDULE_FILE
from kdnas.version import __version__
from kdnas.workshop.opening import cache_dir, resolve_device

_FEW_CORES = 2
"""More threads than one gain nothing on so many (`kdnas.training.numerics`)."""
_OUTSIDE = ("device", "provenance", "name", "teacher_answers", "preprocessing")
"""What of a train.yaml decides nothing of the student, or only checks what another line decides."""
DEFAULT_FORMATS = ExportConfig().formats
_WEIGHTS_FILE = "student.safetensors"
"""Most formats write it (`kdnas.exporters`)."""


def train_fully(
    file: TrainFile,
    out: Path,
    *,
    schedule: TrainingSchedule | None = None,
    shared: Callable[[Ground], nn.Module] | None = None,
    data_root: Path,
    cache: Path | None = None,
    device: str | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> FullTraining:
    """Train the student of `file` in the folder `out` and return its result; continue where an earlier call stopped.

    `schedule`, which has been checked against the file, is followed instead of the file's one plain training. A
    finished training is not repeated, but where its weights are lost; other lost files are written anew. `shared` gives
    the student as it is cut out of the run's supernet, where a schedule begins from that. `device` overrides the
    file's. The test split is read once, at the end. Raises RunFolderError when `out` holds something else, DataError or
    TeacherError when data or teacher are not those of the file, TrialError when the loss is no longer finite.
    """
    check_formats(formats)
    hardware = resolve_device(device or file.device)
    file = file.settled(hardware, locked_training(out))
    claim(out, identity(file, schedule))
    with exclusively(out / GUARD_FILE, "kdnas train"), computing(file.training, hardware):
        done = read_result(out)
        lost = [] if done is None else done.lost
        if done is not None and not lost:
            return done
        for loss in lost:
            say(f"{loss.path} {loss.words}")
        ground = open_ground(file, data_root=data_root, cache=cache or cache_dir(), device=device, say=say)
        if schedule is None:
            plan = counted(file.training.epochs, "epoch")
        else:
            check_images(schedule, ground)
            write_training_schedule(out / SCHEDULE_FILE, schedule)
            plan = f"{counted(len(schedule.steps), 'step')} worth {counted(schedule.budget.epochs, 'epoch')}"
        say(
            f"student {file.arch_id} of {file.name}: {plan} on {len(ground.train):,} images, "
            f"{len(ground.validation):,} held out, on {ground.device}{_computed(file)}"
        )
        weights = out / _WEIGHTS_FILE
        if done is not None and _WEIGHTS_FILE in done.files and weights not in [loss.path for loss in lost]:
            network = load_network(file, weights).to(ground.device)
            trained = StepResult(network, done.score, done.train_seconds)
            return _finish(file, schedule, out, ground, trained, done.formats or formats, say)
        start = None if shared is None else shared(ground)
        trained = _follow(file, schedule, ground, out, start, on_progress)
        return _finish(file, schedule, out, ground, trained, formats, say)


def _computed(file: TrainFile) -> str:
    """Return in words what the training computes with."""
    threads = file.training.threads
    if threads == "auto":
        return f" in {file.training.precision}"
    cores = usable_cores()
    hint = f" of {cores} cores; --threads uses more" if threads == 1 and cores > _FEW_CORES else ""
    return f" in {file.training.precision}, {counted(threads, 'thread')}{hint}"


def identity(file: TrainFile, schedule: TrainingSchedule | None = None) -> dict[str, Any]:
    """Return what decides the trained student; the device and who found it do not."""
    plain = {key: value for key, value in file.plain().items() if key not in _OUTSIDE}
    if schedule is not None:
        whole = schedule.plain()
        steps = [
            {**step, "recorded": fingerprint(step["recorded"])} if "recorded" in step else step
            for step in whole["steps"]
        ]
        plain["schedule"] = {"budget": whole["budget"], "steps": steps}
    return plain


def check_images(schedule: TrainingSchedule, ground: Ground) -> None:
    """Raise ConfigError when the budget of `schedule` was counted for another number of training images."""
    if schedule.budget.images != len(ground.train):
        what = f"is {schedule.budget.images}, but {len(ground.train)} images are trained on: write the schedule anew"
        raise ConfigError(Problem("budget.images", what))


def _follow(
    file: TrainFile,
    schedule: TrainingSchedule | None,
    ground: Ground,
    out: Path,
    shared: nn.Module | None,
    on_progress: Callable[[Progress], None],
) -> StepResult:
    """Do the steps; after each supernet the stages as they went are written into the schedule."""
    if schedule is None:
        only = DistilStep(name="student", share=1.0, arch=file.arch, epochs=file.training.epochs)
        return follow(file, [only], ground, out, on_progress=on_progress)
    recorded = schedule

    def on_step(step: Step, result: StepResult) -> None:
        nonlocal recorded
        if result.schedule is not None:
            recorded = recorded.with_recorded(step.name, result.schedule)
            write_training_schedule(out / SCHEDULE_FILE, recorded)

    return follow(
        file,
        schedule.steps,
        ground,
        out,
        budget_macs=schedule.budget.macs,
        shared=shared,
        on_progress=on_progress,
        on_step=on_step,
    )


def _finish(
    file: TrainFile,
    schedule: TrainingSchedule | None,
    out: Path,
    ground: Ground,
    trained: StepResult,
    formats: Sequence[str],
    say: Callable[[str], None],
) -> FullTraining:
    test_accuracy = ground.test_accuracy(trained.network)
    card = _card(file, schedule, ground, trained, test_accuracy)
    student = assemble(file, trained.network, ground.data, card=card)
    written = write_formats(student, formats, out, say=say)
    result = FullTraining(
        folder=out,
        arch_id=file.arch_id,
        epochs=file.training.epochs,
        score=trained.accuracy,
        test_score=test_accuracy,
        train_seconds=trained.train_seconds,
        files=tuple(path.name for path in written),
        formats=tuple(formats),
        sha256={path.name: file_sha256(path) for path in written},
    )
    plain = dataclasses.asdict(result)
    del plain["folder"], plain["already_done"]
    write_text(out / RESULT_FILE, json.dumps(plain, indent=2) + "\n")
    (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def _card(
    file: TrainFile, schedule: TrainingSchedule | None, ground: Ground, trained: StepResult, test_accuracy: float
) -> dict[str, Any]:
    data, teacher = ground.data, ground.teacher
    limits = ["Its accuracy is that of one training; how far another one would differ was not measured."]
    if schedule is not None:
        limits.append(
            f"It was trained by the route `{schedule.route}`: the steps of schedule.yaml, together worth the epochs "
            "stated. train.yaml has the recipe that they share."
        )
    price = STUDENTS.build(file.arch.family).price(file.student, data.task)
    return {
        "study": file.provenance.study,
        "trial": file.provenance.trial,
        "made_by": f"kdnas {__version__}",
        "accuracy": {
            "validation": {"mean": trained.accuracy, "ci95": None, "trainings": 1},
            "test": {"mean": test_accuracy, "ci95": None, "trainings": 1},
        },
        "weights": {
            "seed": file.seed,
            "epochs": file.training.epochs,
            "data_fraction": file.training.data_fraction,
            "train_seconds": trained.train_seconds,
        },
        "quantities": {
            "macs": {"value": price.macs, "unit": "multiply-accumulates"},
            "params": {"value": price.params, "unit": "parameters"},
        },
        "teacher": {"name": teacher.name, "values": {}, "notes": list(teacher.notes)},
        "data": data_card(file.data.validation_fraction, file.seed, data),
        "limits": limits,
    }
