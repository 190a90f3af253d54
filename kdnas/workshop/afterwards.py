"""What is opened of a run when something is done with its students afterwards: exported, trained, measured."""

from __future__ import annotations

from pathlib import Path

from kdnas.errors import DataError, Problem, RunFolderError, TeacherError
from kdnas.executors import EXECUTORS
from kdnas.outlets import Notify, silent
from kdnas.record.records import RunRecord
from kdnas.students import STUDENTS, StudentFamily, family_for
from kdnas.workshop.opening import MadeOn, Sources, Workshop, resolve_device


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
