"""A teacher that is a student family's member: trained once with cross entropy, and kept in the cache and in the run.

A process that opens the same teacher at the same time waits for it, and an interrupted training is continued. The run
folder has a copy: a run whose cache is gone goes on with the teacher that it began with, on whatever machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kdnas import atomic
from kdnas.core.arch import Arch
from kdnas.core.data import Data
from kdnas.core.parts import Part
from kdnas.core.seeds import derive_seed
from kdnas.core.words import counted
from kdnas.errors import CheckpointError, ConfigError, Problem, RunFolderError, TeacherError, TrialError
from kdnas.faults import reach
from kdnas.nn.weights import save_weights, tensors_sum, weights_metadata
from kdnas.outlets import Notify
from kdnas.plugins import code_fingerprints, is_plugin, short_name
from kdnas.record.run_folder import locked
from kdnas.registry import validation_problems
from kdnas.store import NO_STORE, Store
from kdnas.students import family_for
from kdnas.training.batches import Batches
from kdnas.training.loop import EpochRecord, distil
from kdnas.training.recipe import Distillation, Recipe, Training, numerics_of, training_for
from kdnas.workshop.run_files import TEACHER_FILE

_SUM = "sum"
"""Of a kept teacher's weights, in the header of their file."""


_LEAST = 2
"""Samples of a part."""


@dataclass(frozen=True)
class TeacherTraining:
    """Trains a student family's member on `samples`, a share of the training split, and keeps it under `folder`.

    Its training has the precision and the threads of `numerics`, the students' training, unless it states its own. The
    run folder `run` has a copy of its own; not where an earlier version began it, which did not distinguish teachers by
    what they were computed with: for a run that `has_begun` such a one is looked for as well.
    """

    data: Data
    train_indices: np.ndarray
    samples: Callable[[np.ndarray, float], Batches]
    """A share in (0, 1] of the samples at some places."""
    folder: Path
    device: torch.device
    seed: int
    numerics: Training
    run: Path | None = None
    has_begun: bool = False
    store: Store = NO_STORE
    """Where other machines have it from."""
    _files: dict[Path, Path] = field(default_factory=dict)
    """By the place of a trained network in the cache: where it was read from."""

    @property
    def has_trained(self) -> bool:
        """Whether a network of it was asked for."""
        return bool(self._files)

    def network(
        self,
        family: str,
        choices: Mapping[str, Any],
        training: Mapping[str, Any],
        notify: Notify,
        part: Part | None = None,
    ) -> tuple[nn.Module, Arch]:
        """Return the trained network, which is without its entrance, and its arch: from the cache where it is there.

        Raises ConfigError, and TeacherError where its `part` has too few samples.
        """
        if part is not None:
            return self._of(part).network(family, choices, training, notify)
        settings = _training(training, self.data.task.kind)
        student = family_for(family, self.data.task)
        arch = student.canonical(choices)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "teacher init"))
            network = student.build(arch)
        key = self._key(arch, numerics_of(settings, self.numerics))
        kept = self.folder / f"{key}.safetensors"
        own = [] if self.run is None else [self._copy(kept)]
        of_old = [self.folder / f"{self._key(arch, settings)}.safetensors"] if self.has_begun else []
        found = next((path for path in (*own, kept, *of_old) if _load_kept(network, path, notify)), None)
        if found is None:
            with _made_once(kept, notify):
                if not _load_kept(network, kept, notify):  # another process made it meanwhile
                    kept.unlink(missing_ok=True)
                    made = functools.partial(self._train, network, arch, settings, kept, notify)
                    self.store.have(f"teachers/{kept.name}", kept, made, notify)
                    if not _load_kept(network, kept, notify):
                        made()
        self._files[kept] = found or kept
        return network.eval(), arch

    def _of(self, part: Part) -> TeacherTraining:
        """Return the training on one part of the samples. Raises TeacherError where that has too few."""
        places = part.places(self.data.train.targets[self.train_indices], derive_seed(self.seed, "parts"))
        if len(places) < _LEAST:
            what = f"one of {part.count} parts of {len(self.train_indices):,} samples has {len(places)}"
            raise TeacherError(Problem("teacher.count", what, f"{_LEAST} or more: fewer parts, or a larger skew"))
        return dataclasses.replace(self, train_indices=self.train_indices[places])

    def keep(self) -> None:
        """Have a copy of what was read in the run folder. Raises RunFolderError."""
        for kept, found in self._files.items() if self.run is not None else ():
            copy = self._copy(kept)
            if not copy.exists():
                try:
                    with atomic.replacing(copy) as scratch:
                        shutil.copyfile(found, scratch)
                except OSError as error:
                    raise RunFolderError(f"{copy} cannot be written: {error}") from error

    def _copy(self, kept: Path) -> Path:
        assert self.run is not None
        return self.run / TEACHER_FILE.format(kept.name)

    def _key(self, arch: Arch, training: Training) -> str:
        """Return a hash of everything that decides the trained weights."""
        indices = np.ascontiguousarray(self.train_indices, dtype=np.int64).tobytes()
        facts = {
            "data": self.data.fingerprint,
            "train_indices": hashlib.sha256(indices).hexdigest(),
            "arch": arch.canonical_json,
            "training": training.model_dump(mode="json"),
            "seed": self.seed,
        }
        if is_plugin(arch.family):
            facts |= {"arch": arch.arch_id, "code": code_fingerprints({"family": arch.family})}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    def _train(self, network: nn.Module, arch: Arch, training: Training, kept: Path, notify: Notify) -> None:
        samples = self.samples(self.train_indices, training.data_fraction)
        notify(
            f"training the teacher ({short_name(arch.family)} {arch.arch_id}): {counted(training.epochs, 'epoch')} on "
            f"{len(samples)} {self.data.task.samples}, once; it will be kept in {kept}"
        )

        def on_epoch(record: EpochRecord) -> None:
            reach("teacher epoch")
            notify(f"teacher epoch {record.epoch}/{training.epochs}: loss {record.loss:.4f}, {record.seconds:.1f} s")

        taught = numerics_of(training, self.numerics)
        resumable = kept.with_suffix(".checkpoint")
        train = functools.partial(
            distil,
            network.to(self.device),
            None,
            samples,
            None,
            Recipe(training=taught, distillation=Distillation(task_weight=1.0, losses=())),
            data=self.data,
            seed=derive_seed(self.seed, "teacher"),
            device=self.device,
            on_epoch=on_epoch,
            checkpoint=resumable,
        )
        try:
            train()
        except CheckpointError as error:
            notify(f"the interrupted training of the teacher cannot be continued and starts anew: {error}")
            resumable.unlink(missing_ok=True)
            train()
        except TrialError as error:
            what = f"the training of the teacher failed: {error}"
            raise TeacherError(Problem("teacher.training", what, "a lower learning_rate may help")) from error
        reach("teacher")
        save_weights(network, kept, {_SUM: tensors_sum(network.state_dict())})
        resumable.unlink(missing_ok=True)


@contextlib.contextmanager
def _made_once(kept: Path, notify: Notify) -> Iterator[None]:
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
            notify(f"waiting for another process that trains this teacher and will keep it in {kept}")
            locked(file, wait=True)
        yield
        guard.unlink(missing_ok=True)  # who waits on it finds the teacher made


def _training(settings: Mapping[str, Any], task: str) -> Training:
    """Return the teacher's training section. Raises ConfigError with every problem."""
    section = training_for(task)
    try:
        training: Training = section.model_validate(dict(settings))
    except pydantic.ValidationError as error:
        raise ConfigError(
            Problem(f"teacher.training.{problem.where}", problem.what, problem.allowed)
            for problem in validation_problems(error, section)
        ) from None
    if training.proxy is not None:
        raise ConfigError(Problem("teacher.training.proxy", "proxies choose by a teacher, and this is the teacher"))
    if training.resolution_fraction != 1.0:
        raise ConfigError(Problem("teacher.training.resolution_fraction", "a teacher takes samples whole", "1"))
    return training


def _load_kept(network: nn.Module, kept: Path, notify: Notify) -> bool:
    """Load `kept` into `network`; False where there is none or it is damaged."""
    if not kept.is_file():
        return False
    own = network.state_dict()
    try:
        state, known = load_file(kept), weights_metadata(kept).get(_SUM)
        if known not in (None, tensors_sum(state)):  # earlier versions wrote none
            state = {}
    except (SafetensorError, OSError, RunFolderError):
        state = {}
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
        notify(f"the kept teacher {kept} is damaged and is trained again")
        return False
    network.load_state_dict(state)
    return True
