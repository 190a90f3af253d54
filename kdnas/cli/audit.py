"""`kdnas audit`: whether the search's brief scores rank its students as longer training does."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdnas.cli._options import DataRoot, Json, RunFolder, TrustCode, allow_code_of_run
from kdnas.cli._training_view import TrainingLines
from kdnas.core.words import counted

if TYPE_CHECKING:
    from rich.console import Console

    from kdnas.audit.auditing import Audited, AuditPlan, AuditTask
    from kdnas.record.records import RunRecord


Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        min=1,
        metavar="E",
        help="Of the longer trainings. Default: the finalists', or 4 times the search's where those get no more.",
        show_default=False,
    ),
]
DataFraction = Annotated[
    float | None,
    typer.Option(
        "--data-fraction",
        min=0.001,
        max=1.0,
        metavar="F",
        help="Their share of the training samples. Default: the finalists'.",
        show_default=False,
    ),
]
Loss = Annotated[
    list[str] | None,
    typer.Option(
        "--loss",
        metavar="L",
        help="Repeat the brief trainings under this loss and compare: kd, dkd, ..., ce (the labels alone), or "
        "'{type: dkd, weight: 0.9}'. May be repeated.",
        show_default=False,
    ),
]


def command(
    run: RunFolder,
    students: Annotated[int, typer.Option("--students", min=6, metavar="N", help="Students of the sample.")] = 24,
    epochs: Epochs = None,
    data_fraction: DataFraction = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=100, metavar="S", help="Longer trainings of each student.")
    ] = 2,
    loss: Loss = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and train nothing.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Worker processes. Default: the run's.", show_default=False)
    ] = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Measure how well the search's scores rank its students.

    A sample of the searched students is trained longer. Reported are Kendall's tau between the search score and the
    longer training, overall, among the best quarter and inside bands of equal MACs; the same for the parameter count
    and the MACs alone; the noise ceiling; and the fidelity that tau 0.8 would need. Every training is kept: a stopped
    audit continues by the same command, and a finished one shows its result again. Where another loss (--loss) ranks
    better, audit/study.yaml searches with that one and trains the finalists as before.

    Examples:
      kdnas audit runs/digits --dry-run
      kdnas audit runs/digits --students 24 --epochs 30 --seeds 2 --loss ce --loss dkd
    """
    from kdnas.audit.auditing import pending, plan_audit
    from kdnas.cli._terminal import console as terminal
    from kdnas.cli._terminal import say
    from kdnas.record.storage import load_run
    from kdnas.study.losses import parse_losses
    from kdnas.workshop import opening

    record = load_run(run)
    losses = parse_losses(loss or [], record.config.distillation)
    plan = plan_audit(record, students=students, epochs=epochs, data_fraction=data_fraction, seeds=seeds, losses=losses)
    console = terminal(stderr=as_json)
    tasks = pending(plan, record)
    for line in _announcement(plan, tasks, workers):
        say(console, line)
    if dry_run:
        if as_json:
            typer.echo(json.dumps(_plan_document(plan, tasks), indent=2))
        return
    allow_code_of_run(run, opening.data_root(data_root), trust_code)
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():  # of a user's module too
            record = _carry_out(plan, workers, data_root, console) if tasks else _restate(plan)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues", err=True)
        raise typer.Exit(130) from None
    if as_json:
        from kdnas.report.audit import audit_document

        typer.echo(json.dumps(audit_document(record), indent=2, allow_nan=False))
        return
    _show(record, plan, console)


def _carry_out(plan: AuditPlan, workers: int | None, root_option: Path | None, console: Console) -> RunRecord:
    """Train what is pending and write the report anew; return the run."""
    from kdnas.audit.auditing import limited, open_run, run_audit
    from kdnas.cli._terminal import say
    from kdnas.controller.events import notes_to
    from kdnas.controller.site import site_of
    from kdnas.errors import KdnasError, RunError
    from kdnas.record.front import most_often
    from kdnas.record.storage import run_held
    from kdnas.report.page import write_report
    from kdnas.workshop import opening

    folder = plan.run.folder.resolve()
    progress, notify = _Progress(console, plan.run.score), partial(say, console)
    with run_held(folder, plan.run.config) as database, site_of(plan.run.config, notes_to(notify)) as site:
        opened = open_run(
            plan.run,
            database=database,
            data_root=opening.data_root(root_option).resolve(),
            cache=opening.cache_dir().resolve(),
            workers=workers,
            notify=notify,
            site=site,
        )
        reachable = limited(plan, opened)
        if reachable.seeds < plan.seeds:
            console.print(f"{counted(reachable.seeds, 'independent training')} of each student can be had")
        try:
            record = run_audit(opened, reachable, progress, notify=notify)
        except BaseException:
            with contextlib.suppress(KdnasError):  # a full disk: the error that ended the audit is reported, not this
                write_report(opened.snapshot())
            raise
        write_report(record)
    if progress.failures and len(progress.failures) == progress.ended:
        raise RunError(f"every training of the audit failed{most_often(progress.failures)}")
    return record


def _restate(plan: AuditPlan) -> RunRecord:
    """Return the run with this audit as its last; written only where the last was another."""
    from kdnas.audit.auditing import is_last, restated
    from kdnas.record.storage import run_held
    from kdnas.report.page import write_report

    if is_last(plan):
        return plan.run
    with run_held(plan.run.folder.resolve(), plan.run.config):
        record = restated(plan)
        write_report(record)
    return record


class _Progress(TrainingLines):
    """Prints the trainings of an audit as they end."""

    def __call__(self, event: Audited) -> None:
        """Print `event`."""
        task, score = event.task, self._score
        what = f"trial {task.trial.number:>4}  {task.trial.arch.arch_id}  {task.fidelity.words}, "
        what += f"loss {task.loss}" if task.loss else f"seed {task.seed}"
        outcome = ""
        if event.training is not None:
            searched = score.shown(task.trial.values[score.name])
            outcome = f"{score.name} {score.shown(event.training.score)} (search score {searched})"
        self.print_end(event.done, event.total, what, outcome, event.failure)


def _announcement(plan: AuditPlan, tasks: Sequence[AuditTask], workers: int | None) -> list[str]:
    """Return what will be trained and what it will cost."""
    from kdnas.report.wording import duration

    many = len(plan.students)
    losses = f", and for {plan.brief.words} under {', '.join(plan.losses)}" if plan.losses else ""
    rungs = [config.fidelities[-1].words for config in plan.rungs]
    scores = f", and scores of {', '.join(rungs)} where there are none" if rungs else ""
    most = "most of the search’s scores" if rungs else "the search’s scores"
    lines = [
        f"audit of {counted(many, 'student')}: {plan.fidelity.words} with {counted(plan.seeds, 'seed')} each"
        f"{losses}{scores}; {most} are of {plan.brief.words}"
    ]
    wanted = many * (plan.seeds + len(plan.losses) + len(plan.rungs))
    if not tasks:
        return [*lines, f"all {wanted} trainings are there already; nothing is trained"]
    known = [task.seconds for task in tasks if task.seconds > 0]
    cost = f", about {duration(sum(known) / len(known) * len(tasks))} of training" if known else ""
    crew = workers or plan.run.config.executor.workers
    cost += f" on {counted(crew, 'worker')}" if cost and crew else " over all workers" if cost else ""
    there = f" ({wanted - len(tasks)} of {wanted} are there already)" if wanted > len(tasks) else ""
    return [*lines, f"{counted(len(tasks), 'training')} to do{there}{cost}, by the time that the trials took"]


def _plan_document(plan: AuditPlan, tasks: Sequence[AuditTask]) -> dict[str, object]:
    return {
        "students": [trial.number for trial in plan.students],
        "brief": plan.brief.as_dict(),
        "longer": plan.fidelity.as_dict(),
        "seeds": plan.seeds,
        "losses": list(plan.losses),
        "trainings": [
            {
                "trial": task.trial.number,
                "seed": task.seed,
                "loss": task.loss,
                "fidelity": task.fidelity.as_dict(),
                "train_seconds": task.seconds,
            }
            for task in tasks
        ],
    }


def _show(run: RunRecord, plan: AuditPlan, console: Console) -> None:
    from kdnas.audit.result import audit_result
    from kdnas.cli._terminal import printed, say
    from kdnas.report.audit import findings, tables, write_brief_study
    from kdnas.study.losses import loss_name

    result = audit_result(run)
    if result is None:
        return
    for table in tables(result, loss_name(run.config.distillation)):
        console.print()
        console.print(printed(table))
    console.print()
    for sentence in findings(run, result):
        console.print(sentence, markup=False)
    say(console, f"wrote {run.folder / 'report.html'}")
    for path in write_brief_study(run, result, plan.losses):
        say(console, f"wrote {path}")
