"""`kdnas schedule`: how the chosen student is trained best, as a plan that `kdnas train --plan` follows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdnas.cli._options import DataRoot, Json, Pick, RunFolder, Threads, TrustCode, allow_code_of_run
from kdnas.cli._training_view import training_view
from kdnas.core.pick import DEFAULT_PICK
from kdnas.core.words import command_line, counted

if TYPE_CHECKING:
    from kdnas.plan.making import PlanBasis
    from kdnas.plan.plan_file import TrainingPlan


Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        min=1,
        metavar="N",
        help="The budget: the work of so many epochs of the student. Default: those of the final trainings.",
        show_default=False,
    ),
]
RouteOption = Annotated[
    str,
    typer.Option(
        "--route",
        metavar="auto|direct|shrink|grow|assistants|born_again",
        help="auto: by a rule on the run's numbers.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="auto|cpu|cuda", help="For --measure. Default: the study's.", show_default=False),
]


def command(
    run: RunFolder,
    pick: Pick = DEFAULT_PICK,
    route: RouteOption = "auto",
    measure: Annotated[
        bool, typer.Option("--measure", help="Train by every route with a part of the budget; the best one is taken.")
    ] = False,
    share: Annotated[
        float, typer.Option("--share", min=0.01, max=1.0, help="That part of the budget, for each route.")
    ] = 0.2,
    epochs: Epochs = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Default: RUN/plan.yaml.", show_default=False),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Write the training plan (plan.yaml) of a student.

    The routes are:

      direct      distillation from the teacher
      shrink      a supernet that shrinks to the student, then fine-tuning
      grow        a supernet that grows to the student, then fine-tuning
      assistants  a chain of students, each distilled from the one before
      born_again  the student, then a new copy distilled from it

    All routes have the same budget. Where the run has trained a supernet of its own, shrink begins with its weights,
    which costs nothing of that budget. The results of --measure are kept in RUN/plan, so that the same command
    continues after an interruption.

    Examples:
      kdnas schedule runs/digits --pick 'macs<=1e5' --epochs 100
      kdnas schedule runs/digits --measure
      kdnas train runs/digits --plan runs/digits/plan.yaml
    """
    from kdnas.core.route import ROUTES
    from kdnas.errors import ConfigError, Problem
    from kdnas.plan.making import open_basis
    from kdnas.plan.plan_file import PLAN_FILE, write_plan
    from kdnas.plan.train_file import with_threads
    from kdnas.record.front import pick as pick_member
    from kdnas.record.storage import load_run
    from kdnas.workshop import opening

    if route not in ("auto", *ROUTES):
        raise ConfigError(Problem("--route", f"{route!r} is no route", ", ".join(("auto", *ROUTES))))
    if measure and route != "auto":
        raise ConfigError(Problem("--measure", f"picks the route itself, and --route {route} is given"))
    root = opening.data_root(data_root)
    if device is not None:
        opening.resolve_device(device)
    record = load_run(run)
    allow_code_of_run(run, root, trust_code)
    basis = open_basis(record, pick_member(record, pick), epochs, data_root=root, cache=opening.cache_dir())
    basis = dataclasses.replace(basis, file=with_threads(basis.file, threads))
    if measure:
        plan = _measured(basis, share, root, device, quiet=as_json)
    else:
        plan = _chosen(basis, route)
    path = out or run / PLAN_FILE
    write_plan(path, plan)
    if as_json:
        typer.echo(json.dumps(plan.plain(), indent=2))
        return
    _print(plan, path, run)


def _chosen(basis: PlanBasis, route: str) -> TrainingPlan:
    from kdnas.core.route import ROUTES, choose_route
    from kdnas.plan.making import make_plan

    asked = next((name for name in ROUTES if name == route), None)
    if asked is not None:
        return make_plan(basis, asked, "it was asked for")
    chosen, why = choose_route(basis.inputs)
    return make_plan(basis, chosen, f"rule: {why}")


def _measured(basis: PlanBasis, share: float, data_root: Path, device: str | None, *, quiet: bool) -> TrainingPlan:
    from kdnas.plan.making import make_measured_plan
    from kdnas.workshop import opening

    folder = basis.run.folder / "plan" / basis.file.arch_id
    try:
        with training_view(quiet=quiet) as view:
            return make_measured_plan(
                basis,
                share,
                folder,
                data_root=data_root,
                cache=opening.cache_dir(),
                device=device,
                on_progress=lambda route, progress: view(progress, route),
                notify=view.notify,
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues in {folder}", err=True)
        raise typer.Exit(130) from None


def _print(plan: TrainingPlan, path: Path, run: Path) -> None:
    from kdnas.plan.plan_file import DistilStep
    from kdnas.report.wording import scaled

    budget = plan.budget
    typer.echo(f"student {plan.student.arch_id}: route {plan.route} ({plan.why})")
    typer.echo(
        f"budget: the work of {counted(budget.epochs, 'epoch')} of the student, {scaled(budget.macs).strip()} MACs"
    )
    if plan.supernet is not None:
        paid = scaled(plan.supernet.macs).strip()
        typer.echo(f"  not in it: {paid} MACs of the run's supernet, which the search paid for")
    for item in plan.measured:
        if item.note:
            typer.echo(f"  not measured: {item.note}")
    for step in plan.steps:
        what = (
            f"{counted(step.epochs, 'epoch')} with {step.teacher}"
            if isinstance(step, DistilStep)
            else step.settings.shrinking.policy
        )
        typer.echo(f"  {step.name}: {step.kind}, {step.share:.0%} of the budget, {what}")
    typer.echo(str(path))
    typer.echo(f"next: {command_line('kdnas', 'train', run, '--plan', path)}")
