"""What is opened of a run when something is done with its students afterwards: exported, trained, measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from kdnas.core.task import TaskSpec
from kdnas.core.words import command_line
from kdnas.errors import ConfigError, DataError, KdnasError, Problem, RunFolderError, TeacherError
from kdnas.executors import EXECUTORS
from kdnas.outlets import Notify, silent
from kdnas.record.front import pick as pick_member
from kdnas.record.products import checkpoint_path
from kdnas.record.records import FrontMember, Repeat, RunRecord, TrialRecord
from kdnas.record.storage import load_run
from kdnas.students import STUDENTS, StudentFamily, family_for
from kdnas.tasks import task_of
from kdnas.teachers import EarlierStudent
from kdnas.workshop.opening import MadeOn, Sources, Workshop, cache_dir, resolve_device


def open_run(run: RunRecord, *, data_root: Path, cache: Path, device: str = "cpu", notify: Notify = silent) -> Workshop:
    """Return the workshop of a run, for what is done with its students.

    Its data are compared by the caller. Raises ConfigError where kdnas trained none of them. Of a run whose workers
    may have been on other machines, data and family are opened at once: DataError, TeacherError say where they were.
    """
    _ = run.training_data
    workshop = Workshop(
        Sources.of_study(run.config, run.lock.space, run.folder),
        data_root=data_root,
        cache=cache,
        device=resolve_device(device),
        made_on=MadeOn(data=run.lock.fingerprints.get("data", ""), reader="afterwards"),
        notify=notify,
    )
    executor = run.config.executor.type
    if EXECUTORS.get(executor).elsewhere:
        try:
            _ = workshop.data, workshop.family
        except (DataError, TeacherError) as error:
            what = f"this run's workers (executor {executor}) had its data and teachers, and they are needed here now"
            how = "do this on a machine of theirs, or name where they are with --data-root"
            raise type(error)([*error.problems, Problem(str(run.folder), f"{what}: {how}")]) from error
    return workshop


def family_of(run: RunRecord, *, data_root: Path, cache: Path) -> StudentFamily:
    """Return what builds and prices the students of a run; its teacher is opened only where they are cut out of it.

    Raises RunFolderError where the run does not record what they are given.
    """
    task, name = run.lock.data.task, run.lock.space.family
    if task is None:
        raise RunFolderError(f"{run.folder} does not record what its students are given: they cannot be built")
    if STUDENTS.get(name).derived:
        return open_run(run, data_root=data_root, cache=cache).family
    return family_for(name, task)


def best_repeat(run: RunRecord, trial: TrialRecord) -> Repeat:
    """Return the retraining of `trial` with the best validation score, of equals the first.

    Raises ConfigError, with the command to run, when it was never retrained.
    """
    if not trial.repeats:
        retrained = [other.arch.arch_id for other in run.trials if other.repeats]
        hint = f"; retrained ones: {', '.join(retrained)}" if retrained else ""
        raise ConfigError(
            f"student {trial.arch.arch_id} has only its brief search score, no trained weights: let the search end "
            f"(`kdnas search` with --out {run.folder}), or train it: "
            f"`{command_line('kdnas', 'train', run.folder, '--pick', trial.arch.arch_id)}`{hint}"
        )
    return min(trial.repeats, key=lambda repeat: run.score.minimised(repeat.score))


def load_student(run: RunRecord, member: FrontMember, *, data_root: Path) -> nn.Module:
    """Return the student of `member` behind its normalisation, with the weights of its best retraining, in eval mode.

    A teacher that it was cut out of is read under `data_root`. It takes plain samples, images as floats [B, C, H, W] in
    0..255. Raises ConfigError when the student was not retrained, RunFolderError when its checkpoint is missing or
    damaged.
    """
    network, task = _retrained(run, member, data_root)
    return task_of(task).entrance(network, run.lock.data).eval()


def earlier_student(folder: Path, pick: str, *, data_root: Path) -> EarlierStudent:
    """Return the student that `pick` means of the run in `folder`, for a study that it teaches.

    Raises TeacherError with whatever keeps it from being had.
    """
    try:
        run = load_run(folder)
        member = pick_member(run, pick)
        network, task = _retrained(run, member, data_root)
    except KdnasError as error:
        raise TeacherError(Problem("teacher.run", str(error))) from error
    arch, data = member.trial.arch, run.lock.data
    own = None if STUDENTS.get(arch.family).derived else arch
    return EarlierStudent(run.config.name, network.eval(), own, task, data.class_names, data.statistics)


def _retrained(run: RunRecord, member: FrontMember, data_root: Path) -> tuple[nn.Module, TaskSpec]:
    """Return the student of `member` with the weights of its best retraining, without its entrance, and its task."""
    _ = run.training_data
    repeat, arch = best_repeat(run, member.trial), member.trial.arch
    checkpoint = checkpoint_path(run, repeat), repeat.sha256, command_line("kdnas", "search", run.folder)
    family = family_of(run, data_root=data_root, cache=cache_dir())
    network: nn.Module = family.build(arch)
    load_trained(network, arch.arch_id, *checkpoint)
    return network, family.task


def load_trained(network: nn.Module, arch_id: str, path: Path, sha256: str, remedy: str) -> None:
    """Load the safetensors file `path` into `network`, the student `arch_id`.

    Raises RunFolderError where it is missing, damaged, of another network, or not the file of the hash `sha256`
    (empty: not known); `remedy` is the command that trains it anew.
    """
    again = f"; `{remedy}` trains it again" if remedy else ""
    try:
        content = path.read_bytes()
        if sha256 and (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise RunFolderError(
                f"{path} holds other weights than were trained (SHA-256 {found[:16]}, the record has {sha256[:16]}): "
                f"it was altered or swapped with another{again}"
            )
        network.load_state_dict(safetensors.torch.load(content))
    except FileNotFoundError:
        raise RunFolderError(f"there is no checkpoint {path}{again}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RunFolderError(f"{path} is truncated or not a safetensors file: {error}{again}") from error
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise RunFolderError(f"{path} holds the weights of another network than {arch_id}: {first}") from error
