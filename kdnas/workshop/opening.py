"""Opening what a study names: folders, device, data, the validation split, and the teacher."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import ImageData, stratified_split
from kdnas.core.seeds import derive_seed
from kdnas.core.words import counted
from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError, DataError, Problem, RunFolderError, TeacherError, TrialError
from kdnas.nn.weights import save_weights
from kdnas.record.run_folder import locked
from kdnas.registry import validation_problems
from kdnas.students import family_for
from kdnas.study.config import DataConfig, Member
from kdnas.teachers import TEACHERS, Teacher, TeacherContext
from kdnas.training.batches import Batches
from kdnas.training.loop import EpochRecord, distil
from kdnas.training.recipe import Distillation, Recipe, Training, numerics_of
from kdnas.workshop.data_check import check_split

Say = Callable[[str], None]


def cache_dir() -> Path:
    """Return where decoded data and trained teachers are kept: KDNAS_CACHE, else ~/.cache/kdnas."""
    stated = os.environ.get("KDNAS_CACHE")
    return Path(stated).expanduser() if stated else Path.home() / ".cache" / "kdnas"


def data_root(option: Path | None) -> Path:
    """Return the folder that data is named relative to: `option`, else KDNAS_DATA, else ./data.

    Raises DataError when `option` is no folder. The others may be missing: some data needs no folder.
    """
    if option is not None:
        root = option.expanduser()
        if not root.is_dir():
            raise DataError(Problem("--data-root", f"there is no folder {root}"))
        return root
    stated = os.environ.get("KDNAS_DATA")
    return Path(stated).expanduser() if stated else Path("data")


def resolve_device(name: str) -> torch.device:
    """Return the device that `name` (auto, cpu, cuda or cuda:N) means here. Raises ConfigError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(Problem("device", f"there is no device {name!r}", "auto, cpu, cuda"))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            raise ConfigError(Problem("device", f"cuda: torch {torch.__version__} ({build}) finds no GPU", "auto, cpu"))
        if (device.index or 0) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise ConfigError(Problem("device", f"there is no {name}: {found} GPUs are here", "auto, cpu, cuda"))
    return device


def open_data(config: DataConfig, data_root: Path, cache: Path) -> ImageData:
    """Return the data set that `config` names. Raises DataError, ConfigError."""
    data: ImageData = DATASETS.build(config.type, data_root, cache, **config.options)
    return data


def split(data: ImageData, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted (train, validation) indices into the training images: stratified, a function of `seed`.

    Raises DataError where the classes are too small for a score.
    """
    fraction = config.validation_fraction
    train, validation = stratified_split(data.train.labels, fraction, derive_seed(seed, "validation split"))
    check_split(data, validation, fraction)
    return train, validation


def training_indices(data: ImageData, train_indices: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the sorted share `fraction` in (0, 1] of `train_indices`: stratified, a function of `seed`.

    Every class has a part in it.
    """
    if fraction >= 1.0:
        return train_indices
    labels = data.train.labels[train_indices]
    left, drawn = stratified_split(labels, fraction, derive_seed(seed, "data fraction"))
    only = left[~np.isin(labels[left], labels[drawn])]
    return train_indices[np.union1d(drawn, only)]


def open_teacher(
    config: Member,
    data: ImageData,
    train_indices: np.ndarray,
    *,
    data_root: Path,
    cache: Path,
    device: torch.device,
    seed: int,
    numerics: Training | None = None,
    say: Say = lambda line: None,
) -> Teacher:
    """Return the teacher that `config` names, on `device`. A student family is trained on `train_indices`, once.

    It is trained in the precision and with the threads of `numerics`, the students' training, unless it states its own.
    None: as if it were the only training.
    Raises TeacherError, ConfigError, RunFolderError (a cache that cannot be written).
    """

    def train_student(
        family: str, choices: Mapping[str, Any], training: Mapping[str, Any], say: Say
    ) -> tuple[nn.Module, Arch]:
        trainer = _TeacherTraining(data, train_indices, cache / "teachers", device, seed, numerics)
        return trainer.network(family, choices, training, say)

    context = TeacherContext(data, data_root, device, train_student, say)
    teacher: Teacher = TEACHERS.build(config.type, context, **config.options)
    return teacher


class _TeacherTraining:
    """Trains a student family's member with cross entropy, and keeps it under `folder`."""

    def __init__(
        self,
        data: ImageData,
        train_indices: np.ndarray,
        folder: Path,
        device: torch.device,
        seed: int,
        numerics: Training | None,
    ):
        self._data = data
        self._train_indices = train_indices
        self._folder = folder
        self._device = device
        self._seed = seed
        self._numerics = numerics or Training()

    def network(
        self, family: str, choices: Mapping[str, Any], training: Mapping[str, Any], say: Say
    ) -> tuple[nn.Module, Arch]:
        """Return the trained network, which takes normalised images, and its arch: from the cache where it is there."""
        settings = _training(training)
        student = family_for(family, self._data.task)
        arch = student.canonical(choices)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "teacher init"))
            network = student.build(arch)
        kept = self._folder / f"{self._key(arch, settings)}.safetensors"
        if not _load_kept(network, kept, say):
            with _made_once(kept, say):
                if not _load_kept(network, kept, say):  # another process made it meanwhile
                    self._train(network, arch, settings, kept, say)
        return network.eval(), arch

    def _key(self, arch: Arch, training: Training) -> str:
        """Return a hash of everything that decides the trained weights."""
        indices = np.ascontiguousarray(self._train_indices, dtype=np.int64).tobytes()
        facts = {
            "data": self._data.fingerprint,
            "train_indices": hashlib.sha256(indices).hexdigest(),
            "arch": arch.canonical_json,
            "training": training.model_dump(mode="json"),
            "seed": self._seed,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    def _train(self, network: nn.Module, arch: Arch, training: Training, kept: Path, say: Say) -> None:
        indices = training_indices(self._data, self._train_indices, training.data_fraction, self._seed)
        say(
            f"training the teacher ({arch.family} {arch.arch_id}): {counted(training.epochs, 'epoch')} on "
            f"{len(indices)} images, once; it will be kept in {kept}"
        )

        def on_epoch(record: EpochRecord) -> None:
            say(f"teacher epoch {record.epoch}/{training.epochs}: loss {record.loss:.4f}, {record.seconds:.1f} s")

        taught = numerics_of(training, self._numerics)
        resumable = kept.with_suffix(".checkpoint")
        train = functools.partial(
            distil,
            network.to(self._device),
            None,
            Batches(self._data.train, indices, num_classes=self._data.task.outputs, device=self._device),
            None,
            Recipe(training=taught, distillation=Distillation(task_weight=1.0, losses=())),
            data=self._data,
            seed=derive_seed(self._seed, "teacher"),
            device=self._device,
            on_epoch=on_epoch,
            checkpoint=resumable,
        )
        interrupted = resumable.exists()
        try:
            train()
        except RunFolderError as error:
            if not interrupted:
                raise
            say(f"the interrupted training of the teacher cannot be continued and starts anew: {error}")
            resumable.unlink(missing_ok=True)
            train()
        except TrialError as error:
            what = f"the training of the teacher failed: {error}"
            raise TeacherError(Problem("teacher.training", what, "a lower learning_rate may help")) from error
        save_weights(network, kept)
        resumable.unlink(missing_ok=True)


@contextlib.contextmanager
def _made_once(kept: Path, say: Say) -> Iterator[None]:
    """Hold the making of the teacher `kept`, waiting for another process that has it, until that is done or dead.

    Where the file system has no locks, every process makes it: work is done twice, and nothing is wrong. Raises
    ConfigError where the cache cannot be made.
    """
    guard = kept.with_suffix(".lock")
    try:
        guard.parent.mkdir(parents=True, exist_ok=True)
        file = guard.open("a")
    except OSError as error:
        raise ConfigError(Problem("KDNAS_CACHE", f"{guard.parent} cannot be written: {error}")) from error
    with file:
        if not locked(file):
            say(f"waiting for another process that trains this teacher and will keep it in {kept}")
            locked(file, wait=True)
        yield
        guard.unlink(missing_ok=True)  # who waits on it finds the teacher made


def _training(settings: Mapping[str, Any]) -> Training:
    """Return the teacher's training section. Raises ConfigError with every problem."""
    try:
        training = Training.model_validate(dict(settings))
    except pydantic.ValidationError as error:
        raise ConfigError(
            Problem(f"teacher.training.{problem.where}", problem.what, problem.allowed)
            for problem in validation_problems(error, Training)
        ) from None
    if training.resolution_fraction != 1.0:
        raise ConfigError(Problem("teacher.training.resolution_fraction", "a teacher sees the whole images", "1"))
    return training


def _load_kept(network: nn.Module, kept: Path, say: Say) -> bool:
    """Load `kept` into `network`; False where there is none or it is damaged."""
    if not kept.is_file():
        return False
    own = network.state_dict()
    try:
        state = load_file(kept)
    except (SafetensorError, OSError):
        state = {}
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
        say(f"the kept teacher {kept} is damaged and is trained again")
        return False
    network.load_state_dict(state)
    return True
