"""Which trained student of a run another one may be cut out of: one that was retrained, or that was trained fully."""

from __future__ import annotations

from pathlib import Path

import yaml

from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.plan.train_file import ArchSection, TrainFile
from kdnas.plan.training import Larger
from kdnas.plan.training_folder import LOCK_FILE, read_result
from kdnas.record.front import pick
from kdnas.record.products import checkpoint_path, loss_of
from kdnas.record.records import RunRecord
from kdnas.students import StudentFamily, stated_arch
from kdnas.workshop.afterwards import best_repeat

_WEIGHTS = "student.safetensors"


def larger_student(run: RunRecord, file: TrainFile, origin: str, family: StudentFamily) -> Larger:
    """Return the student that `origin` names: a pick of the run, or the folder of a finished `kdnas train`.

    Raises ConfigError where the student of `file` cannot be cut out of it, naming those of the run that it can be cut
    out of, and RunFolderError where its weights are lost.
    """
    folder = Path(origin)
    larger = _trained_in(folder, file) if (folder / LOCK_FILE).is_file() else _retrained(run, origin)
    if loss := loss_of(larger.weights, larger.sha256):
        raise RunFolderError(f"{larger.weights} {loss.words}")
    if larger.arch == file.student or not family.is_part(file.student, larger.arch):
        holding = [
            trial.arch.arch_id
            for trial in run.trials
            if trial.repeats and trial.arch != file.student and family.is_part(file.student, trial.arch)
        ]
        what = f"student {file.arch_id} is no part of {larger.arch.arch_id}, so it cannot be cut out of that one"
        allowed = ", ".join(dict.fromkeys(holding)) or "none of the run's retrained students holds it"
        raise ConfigError(Problem("--from", what, allowed))
    return larger


def _retrained(run: RunRecord, origin: str) -> Larger:
    """Return a student of the run with the weights of its best retraining."""
    trial = pick(run, origin).trial
    repeat = best_repeat(run, trial)
    return Larger(trial.arch, checkpoint_path(run, repeat), repeat.sha256)


def _trained_in(folder: Path, file: TrainFile) -> Larger:
    """Return the student of a full training. Raises ConfigError where that is unfinished, or another teacher's."""
    result = read_result(folder)
    if result is None or _WEIGHTS not in result.files:
        what = f"{folder} holds no {_WEIGHTS}: its training is not finished, or wrote other formats"
        raise ConfigError(Problem("--from", what))
    locked = yaml.safe_load((folder / LOCK_FILE).read_text(encoding="utf-8"))
    if locked.get("teacher_fingerprint") != file.teacher_fingerprint:
        raise ConfigError(Problem("--from", f"the student in {folder} has another teacher"))
    section = ArchSection.model_validate(locked["arch"])
    arch = stated_arch(section.family, section.choices)
    return Larger(arch, folder / _WEIGHTS, result.sha256.get(_WEIGHTS, ""))
