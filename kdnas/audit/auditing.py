"""The audit of a run: a sample of its students trained longer, to measure how well the search's scores ranked them.

Where a search has rungs, the sampled students are also scored at those that they did not reach, so that every rung is
judged by the same students.

What it trains goes into the run's record at once, so that it may be interrupted and nothing is trained twice; finalists
that were retrained at the same fidelity count. What came of it is `kdnas.audit.result`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdnas.audit.sample import (
    FEWEST,
    retrainings,
    scored_trials,
    scores_at,
    scoring_configs,
    search_fidelity,
    stratified_sample,
    trials_of_scored,
)
from kdnas.controller.events import notes_to
from kdnas.controller.preparation import Opened, prepare_study
from kdnas.controller.site import Site
from kdnas.controller.waiting import work_off
from kdnas.controller.workers import start_executor
from kdnas.core.fidelity import Fidelity, alone
from kdnas.errors import ConfigError, Problem
from kdnas.executors import Finished
from kdnas.faults import reach
from kdnas.outlets import Notify
from kdnas.record.database import Database
from kdnas.record.front import beside
from kdnas.record.records import AuditTraining, Result, RunRecord, TrialRecord
from kdnas.record.storage import Record, record_of, refreshed
from kdnas.study.config import StudyConfig
from kdnas.study.loading import LoadedStudy
from kdnas.training.loss import needs_by_teacher
from kdnas.training.recipe import Distillation
from kdnas.workshop.jobs import RUNG_FOLDER, Job, final_job, search_job
from kdnas.workshop.opening import resolve_device

_LOOKS = 10

LONGER = 4
"""How many times as long as the search's scores an audit trains where finalists get no more than those had."""


@dataclass(frozen=True)
class AuditPlan:
    """What an audit asks for: `students` trained to `fidelity` with `seeds`, and briefly under each other loss."""

    run: RunRecord
    students: tuple[TrialRecord, ...]
    brief: Fidelity
    """Of the search scores."""
    fidelity: Fidelity
    seeds: int
    losses: Mapping[str, Distillation] = dataclasses.field(default_factory=dict)
    """By name; without the study's own, whose brief trainings are the search's."""
    rungs: tuple[StudyConfig, ...] = ()
    """Whose highest rung is a score that every student gets, in addition to its `brief` one."""


@dataclass(frozen=True)
class AuditTask:
    """One training of an audit that is still to do, and how long it is expected to take."""

    trial: TrialRecord
    seed: int
    loss: str
    fidelity: Fidelity
    seconds: float

    @property
    def key(self) -> str:
        """Its name for the executor."""
        return f"{self.trial.number}:{self.seed}:{self.loss}"


@dataclass(frozen=True)
class Audited:
    """One training of an audit ended: `training`, or why it failed. `done` of `total` have ended in this call."""

    task: AuditTask
    training: AuditTraining | None
    failure: str
    done: int
    total: int


def plan_audit(
    run: RunRecord,
    *,
    students: int,
    epochs: int | None = None,
    data_fraction: float | None = None,
    seeds: int = 2,
    losses: Mapping[str, Distillation] | None = None,
) -> AuditPlan:
    """Return the audit of `run`; by default its longer trainings are those that finalists get.

    Where finalists get no more than the search's scores had, as where these were flat already, they are `LONGER` times
    as long as those.
    Raises ConfigError where a loss has no teacher to learn from, where too few students are scored, or where the
    trainings would be no longer than the search's.
    """
    if losses and not run.trains:
        raise ConfigError(Problem("--loss", f"the evaluator {run.config.evaluator.called} trains no students here"))
    for loss in (losses or {}).values():
        needs_by_teacher(loss, run.config.teachers)
    scored = scored_trials(run)
    if len(scored) < FEWEST:
        counted = "1 scored student" if len(scored) == 1 else f"{len(scored)} scored students"
        raise ConfigError(
            f"{run.folder} has {counted}, and an audit needs at least {FEWEST}: run `kdnas search` further first"
        )
    brief = search_fidelity(scored)
    final = run.config.final_fidelity
    start = alone(final.start)
    longer = Fidelity(epochs or final.epochs, data_fraction or final.data_fraction, start)
    if longer.amount <= brief.amount and epochs is None and data_fraction is None:
        data_fraction = max(brief.data_fraction, final.data_fraction)
        longer = Fidelity(LONGER * max(brief.epochs, final.epochs), data_fraction, start)
    if longer.amount <= brief.amount:
        raise ConfigError(
            Problem(
                "--epochs",
                f"the audit would train for {longer.words}, and the search already did for {brief.words}",
                f"more, such as {LONGER * max(brief.epochs, longer.epochs)}",
            )
        )
    if losses and not brief.amount:
        raise ConfigError(
            Problem("--loss", "the search’s scores are of shared weights, which learn from no loss alone")
        )
    other = {name: loss for name, loss in (losses or {}).items() if name}
    paid = {number for number, _, loss, fidelity in _trained(run) if not loss and fidelity == longer}
    rungs = tuple(
        config
        for config in scoring_configs(run.config)
        if brief != config.fidelities[-1] and config.fidelities[-1].amount < longer.amount
    )
    return AuditPlan(run, stratified_sample(run, students, paid), brief, longer, seeds, other, rungs)


def pending(plan: AuditPlan, run: RunRecord) -> tuple[AuditTask, ...]:
    """Return the trainings of `plan` that `run` does not hold.

    First a seed for every student, then the rungs, losses, other seeds.
    """
    done = _trained(run) | {(n, 0, "", f) for f in (c.fidelities[-1] for c in plan.rungs) for n in scores_at(run, f)}
    wanted = [("", 0, plan.fidelity), *(("", 0, config.fidelities[-1]) for config in plan.rungs)]
    wanted += [(name, 0, plan.brief) for name in plan.losses]
    wanted += [("", seed, plan.fidelity) for seed in range(1, plan.seeds)]
    pace = {fidelity: _pace(plan, run, fidelity) for fidelity in {fidelity for _, _, fidelity in wanted}}
    return tuple(
        AuditTask(trial, seed, loss, fidelity, trial.train_seconds * pace[fidelity])
        for loss, seed, fidelity in wanted
        for trial in plan.students
        if (trial.number, seed, loss, fidelity) not in done
    )


def look_epochs(epochs: int) -> tuple[int, ...]:
    """Return the epochs, below the last, after which a longer training is looked at: about ten, closer at the start."""
    return tuple(sorted({round(epochs ** (k / _LOOKS)) for k in range(_LOOKS)} - {epochs}))


def limited(plan: AuditPlan, opened: Opened) -> AuditPlan:
    """Return `plan` with as many seeds as the run's evaluator has independent trainings.

    Raises ConfigError where it has no trainings of that length.
    """
    available, lengths = opened.evaluator.repeats, opened.evaluator.lengths
    if lengths is not None and plan.fidelity.epochs not in lengths:
        longer = ", ".join(str(epochs) for epochs in lengths if epochs > plan.brief.epochs)
        what = f"the evaluator {plan.run.config.evaluator.called} has no scores after {plan.fidelity.epochs} epochs"
        raise ConfigError(Problem("--epochs", what, longer or "none: the search’s scores are its longest"))
    return plan if available is None else dataclasses.replace(plan, seeds=min(plan.seeds, available))


def open_run(
    run: RunRecord,
    *,
    data_root: Path,
    cache: Path,
    workers: int | None,
    notify: Notify,
    database: Database | None = None,
    site: Site | None = None,
) -> Opened:
    """Return `run` open for trainings, at the `site` of its workers where that is not here.

    The caller holds the folder's controller lock, and the `database` of its trials. Raises InputError where data,
    teacher or device are not those of the run any more.
    """
    opened = prepare_study(
        LoadedStudy(run.config, run.folder, run.lock.space),
        run.folder,
        data_root=data_root,
        cache=cache,
        device=None if site else resolve_device(run.lock.device or "auto"),
        observe=notes_to(notify),
        database=database,
        site=site,
    )
    if workers is None:
        return opened
    executor = opened.config.executor.model_copy(update={"workers": workers})
    return dataclasses.replace(opened, config=opened.config.model_copy(update={"executor": executor}))


def run_audit(
    opened: Opened, plan: AuditPlan, observe: Callable[[Audited], None], notify: Notify = lambda line: None
) -> RunRecord:
    """Do what is pending of `plan` and return the run with it. Whatever interrupts it, what was done is kept."""

    noted = notes_to(notify, passing=False)
    _begin(plan, opened.record)
    waiting = deque(pending(plan, opened.snapshot()))
    total = len(waiting)
    if not waiting:
        return opened.snapshot()
    executor = start_executor(opened, noted)
    running: dict[str, AuditTask] = {}

    def begin() -> bool:
        if not waiting:
            return False
        task = waiting.popleft()
        running[task.key] = task
        executor.submit(task.key, _job(plan, task), time_limit_s=_time_limit_s(plan, task))
        return True

    def end(finished: Finished[Result]) -> None:
        task = running.pop(finished.key)
        training, failure = _ended(plan, task, finished)
        if training is not None:
            reach("audit")
            opened.record.add_audit_training(training)
        observe(Audited(task, training, failure, total - len(waiting) - len(running), total))

    try:
        work_off(executor, begin, end, noted)
    finally:
        executor.close()
        opened.files.clear(RUNG_FOLDER)
    return refreshed(opened.run, opened.record)


def restated(plan: AuditPlan) -> RunRecord:
    """Return the run with `plan`, of which nothing is left to train, as its last audit. The caller holds the lock."""
    run = plan.run
    record = record_of(run)
    _begin(plan, record)
    return refreshed(run, record)


def is_last(plan: AuditPlan) -> bool:
    """Whether `plan` is what the run's last audit asked for."""
    audit = plan.run.audit
    students = tuple(trial.number for trial in plan.students)
    return audit is not None and (audit.students, audit.fidelity, audit.seeds) == (students, plan.fidelity, plan.seeds)


def _begin(plan: AuditPlan, record: Record) -> None:
    record.begin_audit([trial.number for trial in plan.students], plan.fidelity, plan.seeds)


def _job(plan: AuditPlan, task: AuditTask) -> Job:
    """Return the training: a finalist's of the audit's length, a rung's, or the search's own under another loss."""
    config, trial = plan.run.config, task.trial
    scoring = next((other for other in plan.rungs if other.fidelities[-1] == task.fidelity), None)
    if scoring is not None and not task.loss:
        return dataclasses.replace(search_job(scoring, trial.arch, trial.tuned), measure=False)
    if not task.loss:
        fidelity = task.fidelity
        longer = {"epochs": fidelity.epochs, "data_fraction": fidelity.data_fraction, "start": fidelity.start}
        final = config.final.model_copy(update=longer)
        others = beside(trial.arch, plan.run.retrained)
        config = config.model_copy(update={"final": final})
        job = final_job(config, trial.number, trial.arch, trial.tuned, task.seed, others=others)
        return dataclasses.replace(job, test=False, checkpoint=None, looks=look_epochs(task.fidelity.epochs))
    tuned = {name: value for name, value in trial.tuned.items() if not name.startswith("distillation.")}
    job = search_job(config, trial.arch, tuned, config.fidelities.index(plan.brief))
    training = job.recipe.training.model_copy(update=task.fidelity.training)
    recipe = job.recipe.model_copy(update={"training": training, "distillation": plan.losses[task.loss]})
    return dataclasses.replace(job, recipe=recipe, measure=False, legs=())


def _ended(plan: AuditPlan, task: AuditTask, finished: Finished[Result]) -> tuple[AuditTraining | None, str]:
    result, score = finished.result, plan.run.score.name
    if result is None or score not in result.values:
        reason = result.infeasible if result is not None else finished.failure
        return None, reason or "no reason was given"
    training = AuditTraining(
        task.trial.number,
        task.seed,
        result.values[score],
        task.fidelity,
        task.loss,
        result.train_seconds,
        result.curve,
    )
    return training, ""


def _time_limit_s(plan: AuditPlan, task: AuditTask) -> float:
    return plan.run.config.time_limit_s(task.fidelity)


def _trained(run: RunRecord) -> set[tuple[int, int, str, Fidelity]]:
    """Return (trial, seed, loss, fidelity) of every training that counts for an audit."""
    made = {(t.number, t.seed, t.loss, t.fidelity) for t in (run.audit.trainings if run.audit else ())}
    return made | {(number, repeat.seed, "", repeat.fidelity) for number, repeat in retrainings(run)}


def _pace(plan: AuditPlan, run: RunRecord, fidelity: Fidelity) -> float:
    """Return how many times longer than its trial a training takes: as seen so far, else by epochs and data.

    0 where neither states it.
    """
    brief = {trial.number: trial.train_seconds for trial in run.trials if trial.train_seconds > 0}
    seen = [(number, repeat.fidelity, repeat.train_seconds) for number, repeat in retrainings(run)]
    seen += [
        (number, trial.fidelity, trial.train_seconds)
        for number, trial in trials_of_scored(run)
        if trial.train_seconds > 0
    ]
    own = run.audit.trainings if run.audit else ()
    seen += [(training.number, training.fidelity, training.train_seconds) for training in own if not training.loss]
    ratios = [seconds / brief[number] for number, of, seconds in seen if of == fidelity and number in brief]
    if ratios:
        return statistics.median(ratios)
    return fidelity.amount / plan.brief.amount if plan.brief.amount else 0.0
