"""A run's supernet: trained once before the first trial, kept in RUN/supernet/, read by whoever shares its weights.

The folder holds `weights.safetensors`, `shrinking.yaml` (what the training unlocked when, and why) and, as long as it
is being trained, `checkpoint.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import ImageData
from kdnas.core.space import SearchSpace
from kdnas.errors import RunFolderError
from kdnas.nn.elastic import Supernet
from kdnas.nn.weights import load_weights, save_weights, weights_metadata
from kdnas.record.lock import SupernetRecord
from kdnas.students import StudentFamily
from kdnas.study.config import StudyConfig, SupernetConfig
from kdnas.training.batches import Batches
from kdnas.training.numerics import in_bfloat16
from kdnas.training.supernet.subnets import SubnetScorer, SubnetSpec

SUPERNET_FOLDER = "supernet"
"""Relative to the run folder."""
WEIGHTS_FILE = "weights.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"
_FACTS = "supernet"


@dataclass(frozen=True)
class SharedWeights:
    """A trained supernet, and what scores and cuts its subnets, each with batch-norm statistics of its own.

    Subnets see images of `side` pixels, the data's own height.
    """

    supernet: Supernet
    scorer: SubnetScorer
    side: int

    def score(self, arch: Arch) -> float:
        """Return the validation accuracy in [0, 1] of `arch` with the shared weights as they are."""
        return self.scorer(self.supernet, SubnetSpec(arch, self.side))

    def cut(self, arch: Arch) -> nn.Module:
        """Return the student of `arch` with copies of the shared weights, in eval mode. It takes normalised images."""
        return self.scorer.cut(self.supernet, SubnetSpec(arch, self.side))


def load_supernet(
    folder: Path,
    config: StudyConfig,
    space: SearchSpace,
    family: StudentFamily,
    data: ImageData,
    train: Batches,
    validation: Batches,
    *,
    fingerprint: str,
) -> SharedWeights:
    """Return the supernet of the run in `folder`, on the device of `train`.

    Args:
        folder: The run folder.
        config: The run's study, which has a supernet.
        space: Its search space.
        family: Its student family.
        data: Its data.
        train: Images that batch-norm statistics are estimated on: the first few of a drawing that is always the same.
        validation: Images that subnets are scored on.
        fingerprint: What the run's lock file says of the weights (`RunRecord.supernet`).

    Raises RunFolderError where the weights are missing, damaged or not those of the lock file.
    """
    check_supernet(folder, fingerprint)
    settings = config.supernet or SupernetConfig()
    supernet = family.supernet(space)
    load_weights(supernet, _weights(folder))
    scorer = SubnetScorer(
        train,
        validation,
        recalibration_samples=settings.recalibration_images,
        validation_samples=settings.score_images,
        bfloat16=in_bfloat16(config.training, train.device),
    )
    return SharedWeights(supernet.to(train.device).eval(), scorer, data.task.size)


def save_supernet(supernet: Supernet, folder: Path, facts: dict[str, Any]) -> None:
    """Write the weights into the run folder, with `facts` in the file's header. Raises RunFolderError."""
    save_weights(supernet, _weights(folder), {_FACTS: json.dumps(facts)})


def saved_supernet(folder: Path) -> SupernetRecord | None:
    """Return the supernet whose weights are in the run folder; None while there are none.

    Raises RunFolderError where the file is damaged.
    """
    path = _weights(folder)
    if not path.exists():
        return None
    facts = weights_metadata(path).get(_FACTS)
    if facts is None:
        raise RunFolderError(f"{path} is no supernet that kdnas saved; remove it and the supernet is trained anew")
    return SupernetRecord(**json.loads(facts), fingerprint=_fingerprint(path))


def check_supernet(folder: Path, fingerprint: str) -> None:
    """Raise RunFolderError where the run's weights are missing or not those that its lock file names."""
    path = _weights(folder)
    if not path.is_file():
        raise RunFolderError(f"the run's supernet {path} is missing; restore it, or begin another run")
    if (now := _fingerprint(path)) != fingerprint:
        raise RunFolderError(
            f"{path} is not the supernet that this run's students were scored with: its hash is {now}, the lock file "
            f"says {fingerprint}; restore it, or begin another run"
        )


def _weights(folder: Path) -> Path:
    return folder / SUPERNET_FOLDER / WEIGHTS_FILE


def _fingerprint(path: Path) -> str:
    """Return sixteen hexadecimal digits of the SHA-256 of a file. Raises RunFolderError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from error
