"""`kdnas train`: the full training of one student, with progress; interrupted, the same command continues it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdnas.cli._options import DataRoot, Threads, TrustCode, allow_code, allow_code_of_run
from kdnas.cli._training_view import training_view
from kdnas.core.objective import Quantity
from kdnas.core.pick import DEFAULT_PICK, PICKS
from kdnas.core.words import counted
from kdnas.plugins import own_name
from kdnas.report.wording import duration

if TYPE_CHECKING:
    from torch import nn

    from kdnas.plan.plan_file import TrainingPlan
    from kdnas.plan.train_file import TrainFile
    from kdnas.plan.training import FullTraining, Larger
    from kdnas.record.records import RunRecord
    from kdnas.workshop.opening import Workshop


Pick = Annotated[
    str | None,
    typer.Option(
        "--pick",
        metavar="P",
        help=f"Which student of a run folder, {DEFAULT_PICK} unless stated: {PICKS}.",
        show_default=False,
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="OTHER",
        help="Cut the student out of this larger trained one of the same run instead of its teacher: an arch id or "
        "another pick, or the folder of a finished `kdnas train`.",
        show_default=False,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        "--schedule",
        metavar="FILE",
        help="Follow this plan.yaml, which `kdnas schedule` writes, instead of training once.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Default: RUN/training/<arch_id>, or a folder `training-<arch_id>` next to the train.yaml; with a "
        "plan its route is added to the name.",
        show_default=False,
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="F",
        help="Write the trained student in this format; may be repeated. Default: all but onnx.",
        show_default=False,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", min=1, metavar="N", help="Default: those of the file or of the study's final trainings."),
]


def command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder, or an exported train.yaml.", show_default=False),
    ],
    pick: Pick = None,
    epochs: Epochs = None,
    origin: From = None,
    plan: PlanFile = None,
    out: Out = None,
    formats: Formats = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="auto|cpu|cuda", help="Default: the study's.", show_default=False)
    ] = None,
    threads: Threads = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
) -> None:
    """Train one student fully.

    The recipe is the one that the search used, or that of a train.yaml. A stopped training continues by the same
    command, after its last whole epoch. The test split is used once, at the end. With --plan, the training's folder
    holds a folder for each step, and the plan with all that was decided on the way, which can be followed again.

    Examples:
      kdnas train runs/digits --pick best --epochs 100
      kdnas train runs/digits --plan runs/digits/plan.yaml
      kdnas train runs/cut --pick 'macs<=1M' --from best
      kdnas train student/train.yaml
    """
    from kdnas.plan.train_file import with_threads
    from kdnas.plan.training import DEFAULT_FORMATS, train_fully
    from kdnas.workshop import opening

    root = opening.data_root(data_root)
    if device is not None:
        opening.resolve_device(device)
    steps = larger = None
    if origin is not None:
        asked, larger = _nested_training(run, pick, epochs, origin, plan, root, trust_code)
    elif plan is None:
        asked = _training_asked_for(run, pick, epochs, root, trust_code)
    else:
        steps, asked = _planned_training(run, pick, epochs, plan, root, trust_code)
    folder = out or asked.folder
    with training_view() as view:
        try:
            result = train_fully(
                with_threads(asked.file, threads),
                folder,
                plan=steps,
                larger=larger,
                shared=None if steps is None or steps.supernet is None else asked.shared,
                data_root=root,
                device=device,
                run=asked.opened,
                formats=[own_name(name) for name in formats or DEFAULT_FORMATS],
                on_progress=view,
                notify=view.notify,
            )
        except KeyboardInterrupt:
            typer.echo(f"interrupted; the same command continues in {folder}", err=True)
            raise typer.Exit(130) from None
    _print(result, asked.file.task.score)


@dataclass(frozen=True)
class _Asked:
    """The training that the arguments name, its default folder, what it works with, and the run: None for a file."""

    file: TrainFile
    folder: Path
    workshop: Workshop
    run: RunRecord | None

    @property
    def opened(self) -> Workshop | None:
        """What the run has open; None for a file, whose training opens its own."""
        return None if self.run is None else self.workshop

    def shared(self, workshop: Workshop) -> nn.Module:
        """Return the student cut out of the run's supernet."""
        from kdnas.plan.making import cut_from_run

        assert self.run is not None  # a plan that begins from a supernet was checked against one
        return cut_from_run(self.run, self.file.student, workshop)


def _training_asked_for(run: Path, pick: str | None, epochs: int | None, data_root: Path, trust_code: bool) -> _Asked:
    """Return the training that is asked for. Raises ConfigError, RunFolderError or DataError."""
    from kdnas.errors import ConfigError, Problem
    from kdnas.plan.train_file import load_train_file, train_file_for, with_epochs
    from kdnas.plan.training_ground import training_workshop
    from kdnas.record.front import pick as pick_member
    from kdnas.record.storage import load_run
    from kdnas.study.yaml_lines import read_yaml
    from kdnas.workshop import opening
    from kdnas.workshop.afterwards import open_run

    record, cache = None, opening.cache_dir()
    if run.is_dir():
        record = load_run(run)
        allow_code_of_run(run, data_root, trust_code)
        member = pick_member(record, pick or DEFAULT_PICK)
        workshop = open_run(record, data_root=data_root, cache=cache)
        file = train_file_for(record, member.trial, workshop.data)
        folder = run / "training" / file.arch_id
    else:
        if pick is not None:
            raise ConfigError(
                Problem("--pick", f"{run} is not a run folder: a train.yaml names its one student itself")
            )
        allow_code(run, read_yaml(run).data, data_root, trust_code)
        file = load_train_file(run)
        workshop = training_workshop(file, data_root=data_root, cache=cache)
        folder = run.parent / f"training-{file.arch_id}"
    return _Asked(file if epochs is None else with_epochs(file, epochs), folder, workshop, record)


def _nested_training(
    run: Path, pick: str | None, epochs: int | None, origin: str, plan: Path | None, data_root: Path, trust_code: bool
) -> tuple[_Asked, Larger]:
    """Return the training that is asked for, and the larger student that its own is cut out of. Raises InputError."""
    from kdnas.errors import ConfigError, Problem
    from kdnas.plan.cutting_on import larger_student

    if plan is not None:
        raise ConfigError(Problem("--from", "a plan's steps state themselves what they begin from", "without --plan"))
    if not run.is_dir():
        raise ConfigError(Problem("--from", f"{run} is not a run folder: it has no other student"))
    asked = _training_asked_for(run, pick, epochs, data_root, trust_code)
    assert asked.run is not None  # of a folder
    larger = larger_student(asked.run, asked.file, origin, asked.workshop.family)
    name = f"{asked.folder.name}-from-{larger.arch.arch_id}"
    return replace(asked, folder=asked.folder.with_name(name)), larger


def _planned_training(
    run: Path, pick: str | None, epochs: int | None, path: Path, data_root: Path, trust_code: bool
) -> tuple[TrainingPlan, _Asked]:
    """Return the plan at `path` and the training it is for. Raises InputError."""
    from kdnas.errors import ConfigError, Problem
    from kdnas.plan.plan_file import check_plan, load_plan
    from kdnas.plan.train_file import locked_fingerprint

    steps, document = load_plan(path)
    if epochs is not None:
        raise ConfigError(Problem("--epochs", f"{path} states its own budget: write another one with `kdnas schedule`"))
    student = steps.student.arch_id
    try:
        own = student if run.is_dir() and pick is None else pick
        asked = _training_asked_for(run, own, steps.budget.epochs, data_root, trust_code)
    except ConfigError as error:
        if pick is None and [problem.where for problem in error.problems] == ["pick"]:
            raise ConfigError(Problem(document.name, f"is a plan for student {student}, not of {run}")) from None
        raise
    space = supernet = ""
    if asked.run is not None:
        space = locked_fingerprint(asked.run, "space")
        supernet = asked.run.supernet.fingerprint if asked.run.supernet else ""
    check_plan(steps, document, asked.file, asked.workshop.family, space=space, supernet=supernet)
    return steps, replace(asked, folder=asked.folder.with_name(f"{asked.folder.name}-{steps.route}"))


def _print(result: FullTraining, score: Quantity) -> None:
    if result.already_done:
        typer.echo(f"already done: {result.folder} holds this student, trained for {counted(result.epochs, 'epoch')}")
    scores = f"validation {score.name} {score.shown(result.score)}, test {score.name} {score.shown(result.test_score)}"
    took = f"after {counted(result.epochs, 'epoch')} ({duration(result.train_seconds)} of training)"
    typer.echo(f"student {result.arch_id}: {scores} {took}")
    for name in result.files:
        typer.echo(str(result.folder / name))
