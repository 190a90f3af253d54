"""Full training of one student by its train.yaml: resumable after any interruption, finished once.

The folder holds `training.lock.yaml` (exactly what is being trained), `history.csv` (one row an epoch), the checkpoint
of the last whole epoch while it runs, and at the end the student's files and `result.json`, written last.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import kdnas
from kdnas.core.data import ImageData
from kdnas.core.seeds import derive_seed
from kdnas.errors import DataError, Problem, RunFolderError, TeacherError
from kdnas.nn.normalise import Normalised
from kdnas.students import STUDENTS
from kdnas.study.config import ExportConfig
from kdnas.study.exporting import assemble, build_network, check_formats, data_card, write_formats
from kdnas.study.opening import cache_dir, open_data, open_teacher, resolve_device, split, training_indices
from kdnas.study.run_folder import exclusively, write_text
from kdnas.study.train_file import TrainFile
from kdnas.study.training_folder import (
    CHECKPOINT_FILE,
    GUARD_FILE,
    RESULT_FILE,
    brief,
    claim,
    read_history,
    write_history,
)
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.distil import EpochRecord, Trained, distil
from kdnas.training.evaluation import accuracy

DEFAULT_FORMATS = ExportConfig().formats
_EVALUATION_SHARE = 0.1
"""At most about this share of the training time goes into looking at the validation accuracy on the way."""


@dataclass(frozen=True)
class EpochReport:
    """One epoch's end. `accuracy` is on the validation split where it was looked at; `seconds` is the epoch's time."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class FullTraining:
    """A finished full training. `accuracy` is on the validation split, `test_accuracy` on the test split."""

    folder: Path
    arch_id: str
    epochs: int
    accuracy: float
    test_accuracy: float
    train_seconds: float
    files: tuple[str, ...]
    already_done: bool = False


def train_fully(
    file: TrainFile,
    out: Path,
    *,
    data_root: Path,
    cache: Path | None = None,
    device: str | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    say: Callable[[str], None] = lambda line: None,
) -> FullTraining:
    """Train the student of `file` in the folder `out` and return its result; continue where an earlier call stopped.

    A finished training is not repeated. `device` overrides the file's. The test split is read once, at the end. Raises
    RunFolderError when `out` holds something else, DataError or TeacherError when data or teacher are not those of the
    file, TrialError when the loss is no longer finite.
    """
    check_formats(formats)
    claim(out, _identity(file))
    with exclusively(out / GUARD_FILE, "kdnas train"):
        done = _read_result(out)
        if done is not None:
            return done
        cache = cache or cache_dir()
        hardware = resolve_device(device or file.device)
        data = open_data(file.data, data_root, cache)
        check_data(file, data)
        train_indices, validation_indices = split(data, file.data, file.seed)
        teacher = open_teacher(
            file.teacher,
            data,
            train_indices,
            data_root=data_root,
            cache=cache,
            device=hardware,
            seed=file.seed,
            say=say,
        )
        check_teacher(file, teacher)
        used = training_indices(data, train_indices, file.training.data_fraction, file.seed)
        classes = data.task.num_classes
        train = Batches(data.train, used, num_classes=classes, device=hardware)
        validation = Batches(data.train, validation_indices, num_classes=classes, device=hardware)
        say(
            f"student {file.arch_id} of {file.name}: {file.training.epochs} epochs on {len(train):,} images, "
            f"{len(validation):,} held out, on {hardware}"
        )
        trained = _train(file, out, data, teacher, train, validation, hardware, on_epoch)
        test = Batches(data.test, np.arange(len(data.test)), num_classes=classes, device=hardware)
        test_accuracy = accuracy(_on_pixels(trained.network, data, hardware), test)
        return _finish(file, out, data, teacher, trained, test_accuracy, formats, say)


def check_data(file: TrainFile, data: ImageData) -> None:
    """Raise DataError naming everything in which `data` is not what `file` was written for."""
    expected: list[tuple[str, Any, Any]] = [
        ("data_fingerprint", file.data_fingerprint, data.fingerprint),
        ("input_shape", tuple(file.input_shape), tuple(data.task.input_shape)),
        ("class_names", tuple(file.class_names), tuple(data.class_names)),
        ("channel_mean", tuple(file.channel_mean), tuple(float(value) for value in data.channel_mean)),
        ("channel_std", tuple(file.channel_std), tuple(float(value) for value in data.channel_std)),
    ]
    problems = [
        Problem(
            name, f"the data {data.name} is not what this training was written for: {brief(now)} instead", brief(was)
        )
        for name, was, now in expected
        if was != now
    ]
    if problems:
        raise DataError(problems)


def check_teacher(file: TrainFile, teacher: Teacher) -> None:
    """Raise TeacherError when `teacher` is another one than `file` names by its hash."""
    if file.teacher_fingerprint and teacher.fingerprint != file.teacher_fingerprint:
        raise TeacherError(
            Problem(
                "teacher_fingerprint",
                f"the teacher {teacher.name} is not the one of this training: {teacher.fingerprint} instead",
                file.teacher_fingerprint,
            )
        )


def _identity(file: TrainFile) -> dict[str, Any]:
    """Return what decides the trained student; the device and who found it do not."""
    return {key: value for key, value in file.plain().items() if key not in ("device", "provenance", "name")}


def _train(
    file: TrainFile,
    out: Path,
    data: ImageData,
    teacher: Teacher,
    train: Batches,
    validation: Batches,
    device: torch.device,
    on_epoch: Callable[[EpochReport], None],
) -> Trained:
    seed = derive_seed(file.seed, "full", file.arch_id)
    torch.manual_seed(seed)
    network = build_network(file, data.task).to(device)
    watch = _Watch(file, out, _on_pixels(network, data, device), validation, on_epoch)
    trained = distil(
        network,
        teacher,
        train,
        validation,
        file.recipe,
        data=data,
        seed=seed,
        view_seed=derive_seed(file.seed, "full views"),
        device=device,
        on_epoch=watch,
        checkpoint=out / CHECKPOINT_FILE,
    )
    watch.rewrite(trained.history)
    return trained


class _Watch:
    """Called at each epoch's end: looks at the validation accuracy now and then, and keeps history.csv."""

    def __init__(
        self,
        file: TrainFile,
        out: Path,
        module: nn.Module,
        validation: Batches,
        on_epoch: Callable[[EpochReport], None],
    ):
        self._epochs = file.training.epochs
        self._out = out
        self._module = module
        self._validation = validation
        self._on_epoch = on_epoch
        self._records, self._looks = read_history(out)
        self._next_look = 0

    def __call__(self, record: EpochRecord) -> None:
        """Note `record` and tell `on_epoch`."""
        seen = self._look(record) if record.epoch >= self._next_look else None
        self._looks = {epoch: look for epoch, look in self._looks.items() if epoch < record.epoch}
        if seen is not None:
            self._looks[record.epoch] = seen
        self._records = [*(earlier for earlier in self._records if earlier.epoch < record.epoch), record]
        write_history(self._out, self._records, self._looks)
        self._on_epoch(EpochReport(record.epoch, self._epochs, record.loss, seen, record.seconds))

    def rewrite(self, records: Sequence[EpochRecord]) -> None:
        """Write history.csv anew from the whole training's `records`: an interruption may have cost it a row."""
        write_history(self._out, records, self._looks)

    def _look(self, record: EpochRecord) -> float:
        begun = time.perf_counter()
        seen = accuracy(self._module, self._validation)
        took = time.perf_counter() - begun
        pause = math.ceil(took / (_EVALUATION_SHARE * max(record.seconds, 1e-3)))
        self._next_look = record.epoch + max(1, pause)
        return seen


def _finish(
    file: TrainFile,
    out: Path,
    data: ImageData,
    teacher: Teacher,
    trained: Trained,
    test_accuracy: float,
    formats: Sequence[str],
    say: Callable[[str], None],
) -> FullTraining:
    assert trained.accuracy is not None  # distil was given a validation split
    card = _card(file, data, teacher, trained, test_accuracy)
    student = assemble(file, trained.network, data, card=card)
    written = write_formats(student, formats, out, say=say)
    result = FullTraining(
        folder=out,
        arch_id=file.arch_id,
        epochs=file.training.epochs,
        accuracy=trained.accuracy,
        test_accuracy=test_accuracy,
        train_seconds=trained.train_seconds,
        files=tuple(path.name for path in written),
    )
    plain = dataclasses.asdict(result)
    del plain["folder"], plain["already_done"]
    write_text(out / RESULT_FILE, json.dumps(plain, indent=2) + "\n")
    (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def _read_result(out: Path) -> FullTraining | None:
    """Return the finished training in `out`, None while there is none. Raises RunFolderError when it is damaged."""
    path = out / RESULT_FILE
    if not path.exists():
        return None
    try:
        plain: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return FullTraining(folder=out, already_done=True, **{**plain, "files": tuple(plain["files"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path} is damaged: {error}; remove it to finish the training again") from error


def _card(file: TrainFile, data: ImageData, teacher: Teacher, trained: Trained, test_accuracy: float) -> dict[str, Any]:
    price = STUDENTS.build(file.arch.family).price(file.student, data.task)
    return {
        "study": file.provenance.study,
        "trial": file.provenance.trial,
        "made_by": f"kdnas {kdnas.__version__}",
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
        "limits": ["Its accuracy is that of one training; how far another one would differ was not measured."],
    }


def _on_pixels(network: nn.Module, data: ImageData, device: torch.device) -> nn.Module:
    return Normalised(network, data.channel_mean, data.channel_std).to(device)
