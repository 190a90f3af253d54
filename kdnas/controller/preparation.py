"""From a study on paper to one that can run: everything is opened, checked and locked, and nothing is left behind when
something is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from kdnas.controller.companions import companions
from kdnas.controller.events import Note, Observer
from kdnas.controller.site import Site
from kdnas.core.arch import Arch
from kdnas.core.objective import breaches
from kdnas.core.seeds import derive_seed
from kdnas.core.space import SearchSpace
from kdnas.errors import RunFolderError
from kdnas.executors import EXECUTORS
from kdnas.faults import reach
from kdnas.machine import usable_cores
from kdnas.nn.teacher import further_of
from kdnas.outlets import Notify
from kdnas.record.database import Database, database_of
from kdnas.record.lock import (
    Lock,
    hashes,
    read_calibrations,
    read_lock,
    refuse_another_study,
    refuse_other_answers,
    write_lock,
    written_calibrations,
)
from kdnas.record.records import RunRecord
from kdnas.record.run_folder import LOCK_FILE, write_text
from kdnas.record.storage import Record, refreshed, run_of_lock
from kdnas.store import open_store
from kdnas.study.config import StudyConfig
from kdnas.study.feasibility import PricedArch, nearest_miss, reference_costs, relative_excess, sample_prices
from kdnas.study.loading import LoadedStudy
from kdnas.training.recipe import Training
from kdnas.training.teacher_outputs import may_be_kept
from kdnas.workshop.elsewhere import ErrandPlan
from kdnas.workshop.evaluators import Evaluator, EvaluatorContext, Workplan, open_evaluator
from kdnas.workshop.numerics import known_config, resumed, settled_config
from kdnas.workshop.opening import MadeOn, resolve_device
from kdnas.workshop.opening import data_root as own_data_root
from kdnas.workshop.run_files import RunFiles
from kdnas.workshop.travelling_code import send_code

_SMALLEST_TRIED = 5
_BEGUN = ".begun"
_SIGNS = (_BEGUN, "trials.csv")
"""Files of which one is there once a run has a record; versions before wrote the second alone, at the end."""


@dataclass(frozen=True)
class Opened:
    """A study that is ready to run: what it is, its evaluator and record, and the run as it was when it was opened."""

    config: StudyConfig
    """With the teacher's numbers in the constraints that speak of it."""
    space: SearchSpace
    evaluator: Evaluator
    record: Record
    workplan: Workplan
    run: RunRecord
    site: Site | None = None
    """Where its workers are; None: here."""

    @property
    def files(self) -> RunFiles:
        """The files of the run."""
        return self.workplan.context.files

    def snapshot(self) -> RunRecord:
        """Return the run as it stands."""
        return refreshed(self.run, self.record)

    @property
    def device(self) -> torch.device:
        """Where students are trained."""
        return torch.device(self.evaluator.context.device)

    @property
    def workers(self) -> int:
        """Workers that will run: as configured, else one a device, or as many as the cores have threads for."""
        return self.config.executor.workers or default_workers(self.device, self.config.training)

    @property
    def crew(self) -> int | None:
        """`workers`; None where the study states none and its executor finds out itself how many there is room for."""
        options = EXECUTORS.options(self.config.executor.type).model_fields
        counts = "workers" in options and options["workers"].default is None
        return self.config.executor.workers if counts else self.workers

    @property
    def threads(self) -> int:
        """CPU threads of each worker: what its trainings compute with, on a CUDA device a share of the cores."""
        threads = self.config.training.threads
        return max(usable_cores() // self.workers, 1) if threads == "auto" else threads


def prepare_study(
    study: LoadedStudy,
    folder: Path,
    *,
    data_root: Path,
    cache: Path,
    device: torch.device | None = None,
    observe: Observer,
    database: Database | None = None,
    site: Site | None = None,
) -> Opened:
    """Return `study`, ready to run in `folder`: a new run, or the one that is there.

    The caller holds the folder's controller lock, and the `database` that its trials are kept in; None: the folder is
    all that is held. `device` is that of this machine, None: what the study states; where the workers are at a `site`,
    nothing is opened here, and the device is theirs. Raises InputError where data, teacher, constraints or the run
    folder are wrong; nothing has been written then. What all scores rest on, such as a supernet, is trained last:
    stopped in it, the next call goes on.
    """
    locked = read_lock(folder) if (folder / LOCK_FILE).exists() else None
    config = study.config
    if locked is not None:  # before a teacher is trained for another study
        refuse_another_study(folder, locked, known_config(config, locked))
    context = _context(study, folder, locked, data_root, cache, notify=lambda line: observe(Note(line)))
    database = database or database_of(folder, config.name, config.storage)
    database.notify = lambda line: observe(Note(line))
    if locked is None and config.storage is not None and database.exists():
        what = f"{database.place} holds a study {config.name!r} already, of another run folder"
        raise RunFolderError(f"{what}: search in that one, or give this study another name")
    evaluator = _opened_evaluator(context, locked, device, site)
    context = evaluator.context
    config, space = context.config, evaluator.space
    study = dataclasses.replace(study, config=config)
    if locked is not None:
        where = context.device if evaluator.measured else None
        refuse_another_study(folder, locked, config, space, evaluator.fingerprints, where)
        lock = resumed(locked, config, evaluator.machine)
        for difference in evaluator.differences(locked):
            observe(Note(difference))
        refuse_other_answers(folder, locked, evaluator.teacher_answers)
    else:
        lock = examine(study, evaluator).lock
        write_lock(folder, lock)
        reach("prepared")
    run = run_of_lock(folder, lock)
    if config.storage is not None:
        observe(Note(f"its trials are kept in {database.place}"))
    if not database.exists():
        if locked is not None and any((folder / name).exists() for name in _SIGNS):
            raise RunFolderError(f"{folder} has lost its record {database.place}; restore it or choose another --out")
        Record.create(database, run.objectives)
    write_text(folder / _BEGUN, "The record of this run has been made.\n")
    record = Record.open(database, run.objectives)
    record.name_axes(run.objectives)
    if locked is not None and lock != locked:
        write_lock(folder, lock)  # once the record has shown itself to be this run's
    evaluator.keep()
    with _companions(context, evaluator, lock, site):
        supernet = evaluator.prepare()
    if supernet != lock.supernet:
        lock = dataclasses.replace(lock, supernet=supernet)
        write_lock(folder, lock)
        run = run_of_lock(folder, lock)
    config = config.against(run.standard)
    workplan = _workplan(dataclasses.replace(context, config=config, supernet=supernet), evaluator, site)
    return Opened(config, space, evaluator, record, workplan, refreshed(run, record), site)


def _context(
    study: LoadedStudy, folder: Path, locked: Lock | None, data_root: Path, cache: Path, *, notify: Notify
) -> EvaluatorContext:
    """Return what an evaluator of the study is opened from: with what the run in `folder` has found out, if any."""
    return EvaluatorContext(
        study.config,
        study.space,
        folder,
        data_root,
        cache,
        study.config.device,
        calibrations=read_calibrations(locked, folder) if locked else {},
        supernet=locked.supernet if locked else None,
        made_on=MadeOn(locked.fingerprints.get("data", "") if locked else ""),
        notify=notify,
        store=open_store(study.config.store, notify=notify),
        root_is_stated=data_root != own_data_root(None).resolve(),
    )


def _workplan(context: EvaluatorContext, evaluator: Evaluator, site: Site | None) -> Workplan:
    """Return what workers open, also those that do errands from now on."""
    known = dataclasses.replace(context, calibrations=evaluator.calibrations, made_on=_made_on(evaluator))
    workplan = Workplan(_sent(known, evaluator.space))
    if site is not None:
        site.reopen(ErrandPlan(workplan.context))
    return workplan


def _companions(
    context: EvaluatorContext, evaluator: Evaluator, lock: Lock, site: Site | None
) -> contextlib.AbstractContextManager[None]:
    """Return who computes the teacher's outputs ahead where a supernet is trained here, on the cores of the workers."""
    config, device = context.config, torch.device(context.device)
    trains = config.shares_weights and lock.supernet is None and site is None and device.type == "cpu"
    count = min(config.executor.workers or sys.maxsize, default_workers(device, config.training)) - 1
    if not trains or count < 1 or not may_be_kept(config.distillation):
        return contextlib.nullcontext()
    threads = 1 if config.training.threads == "auto" else config.training.threads
    return companions(_workplan(context, evaluator, None).context, count=count, threads=threads)


def _opened_evaluator(
    context: EvaluatorContext, locked: Lock | None, device: torch.device | None, site: Site | None
) -> Evaluator:
    """Return what scores the study's students, its numerics settled: open here, or where the workers are."""
    if site is not None:
        return site.open(ErrandPlan(_sent(context, context.space), locked))
    device = device or resolve_device(context.config.device)
    config = settled_config(context.config, device, locked)
    return open_evaluator(dataclasses.replace(context, config=config, device=str(device)))


def _sent(context: EvaluatorContext, space: SearchSpace) -> EvaluatorContext:
    """Return `context` for other machines, once what they have not, and that is here, is in the store."""
    files = RunFiles.of_controller(context.folder, context.store, context.config.name)
    code = send_code(context.config, space.family, context.data_root, context.store)
    return dataclasses.replace(context, run=files.run, prepared=files.share_made(), code=code)


def _made_on(evaluator: Evaluator) -> MadeOn:
    known, answers = evaluator.fingerprints, evaluator.teacher_answers
    return MadeOn(known.get("data", ""), known.get("teacher", ""), answers, further=further_of(known))


@dataclass(frozen=True)
class Examined:
    """What a new run determines once: its lock file, and sampled prices.

    `config` has the teacher's numbers in the constraints that speak of it.
    """

    lock: Lock
    config: StudyConfig
    sample: list[PricedArch]


def examine(study: LoadedStudy, evaluator: Evaluator) -> Examined:
    """Check and measure what `evaluator` has opened for a study that has not been run yet; nothing is written.

    Raises InputError where a search would: a teacher that should not teach, losses that cannot be computed, constraints
    that no student meets.
    """
    stated = study.config

    def priced(config: StudyConfig) -> list[PricedArch]:
        seed = derive_seed(config.seed, "feasibility")
        return sample_prices(evaluator.space, evaluator.arch, evaluator.price, constraints=config.limits, seed=seed)

    sample = priced(stated)  # refuses what no student can meet before anything is measured
    evaluator.try_out(_extremes(sample))
    found = evaluator.facts()
    config = stated.against(None if found.teacher is None else found.teacher.standard(stated.score))
    if config != stated or evaluator.price(sample[0].arch).keys() != sample[0].costs.keys():
        sample = priced(config)  # what speaks of the teacher is a number now, and a latency table prices too
    _check_measured(config, evaluator, sample)
    worst = {config.score.name: found.worst, **found.chances}
    costs = [name for name in config.objectives if name not in worst]
    teacher = found.teacher.values if found.teacher else {}
    reference = {**worst, **reference_costs(sample, config.limits, teacher, costs)}
    lock = Lock(
        config=stated,
        space=evaluator.space,
        fingerprints=hashes(stated, evaluator.space, evaluator.fingerprints),
        quantities=tuple(evaluator.quantities.values()),
        reference_point={name: reference[name] for name in config.objectives},
        teacher=found.teacher,
        data=found.data,
        calibrations=written_calibrations(found.calibrations),
        teacher_answers=evaluator.teacher_answers,
        device=evaluator.context.device,
        machine=evaluator.machine,
        further_teachers=found.further_teachers,
    )
    return Examined(lock, config, sample)


def _extremes(sample: list[PricedArch]) -> dict[str, Arch]:
    """Return the sampled students of the least and the most MACs, by what they are called; none without MACs."""
    if "macs" not in sample[0].costs:
        return {}
    by_macs = sorted(sample, key=lambda candidate: candidate.costs["macs"])
    return {"the smallest student": by_macs[0].arch, "the largest student": by_macs[-1].arch}


def _check_measured(config: StudyConfig, evaluator: Evaluator, sample: list[PricedArch]) -> None:
    """Measure the smallest feasible students. Raises ConfigError when none of them meets the measured constraints."""
    bounds = config.limits
    if not {bound.name for bound in bounds} & set(evaluator.measured):
        return
    feasible = [candidate for candidate in sample if not breaches(candidate.costs, bounds, known_only=True)]
    tried = []
    for candidate in sorted(feasible, key=lambda candidate: candidate.costs["macs"])[:_SMALLEST_TRIED]:
        measured = evaluator.measure(candidate.arch)
        values = {**candidate.costs, **{name: measurement.value for name, measurement in measured.items()}}
        excess = relative_excess(values, bounds)
        if excess == 0.0:
            return
        tried.append((excess, candidate.arch, values))
    _, arch, values = min(tried, key=lambda entry: entry[0])
    raise nearest_miss(evaluator.space, bounds, arch, values)


def default_workers(device: torch.device, training: Training) -> int:
    """Return one worker a CUDA device, or as many as use the CPU cores of this process with the training's threads."""
    if device.type == "cuda":
        return max(torch.cuda.device_count(), 1)
    return max(usable_cores() // (1 if training.threads == "auto" else training.threads), 1)
