"""`kdnas compare`: the same students trained by several recipes, side by side."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdnas.cli._options import DataRoot, Json, StudyPath, TrustCode, allow_code_of_run
from kdnas.cli._training_view import TrainingLines
from kdnas.core.pick import PICKS
from kdnas.core.words import counted

if TYPE_CHECKING:
    from rich.console import Console

    from kdnas.audit.comparing import Compared, Comparison, Comparisons
    from kdnas.controller.preparation import Opened

Varies = Annotated[
    list[str],
    typer.Option(
        "--vary",
        metavar="KEY=V1,V2",
        help="A setting of the recipe and its values: distillation.losses=kd,dkd,ce; distillation.temperature=1,4 (of "
        "every loss that has one); training.learning_rate=0.05,0.1. Repeated, every combination is trained.",
        show_default=False,
    ),
]
Picks = Annotated[
    list[str] | None,
    typer.Option(
        "--pick",
        metavar="P",
        help=f"Which student: {PICKS}; smallest, median or largest by MACs where none was searched for. Repeated, "
        "several. Default: the study's own pick.",
        show_default=False,
    ),
]


def command(
    study: StudyPath,
    vary: Varies,
    pick: Picks = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, metavar="N", help="Trainings of each.")] = 3,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, metavar="E", help="Of each. Default: the finalists'.", show_default=False),
    ] = None,
    data_fraction: Annotated[
        float | None,
        typer.Option(
            "--data-fraction", min=0.001, max=1.0, metavar="F", help="Default: the finalists'.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Default: runs/NAME.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and train nothing.")] = False,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Train the same students by several recipes on one budget.

    A recipe is one combination of the varied settings: losses, their options, weights, learning rates. All recipes are
    trained with the same seeds, so that their scores are compared in pairs and differences beyond noise are marked.
    Every training is kept in RUN/compare: a stopped comparison continues by the same command, and one with more
    recipes or seeds trains only what is new. The table, a figure and the best recipe as a study are written there.

    Examples:
      kdnas compare runs/digits --vary distillation.losses=ce,kd,dkd,dist --seeds 3
      kdnas compare studies/digits --pick median --vary distillation.losses=kd,dkd \\
        --vary distillation.temperature=1,4
    """
    from kdnas.record.started_study import read_study, run_folder

    continued = run_folder(study)
    if continued is not None:
        from kdnas.workshop.opening import data_root as resolved_data_root

        allow_code_of_run(continued, resolved_data_root(data_root), trust_code)
    from kdnas.audit.recipes import parse_vary
    from kdnas.cli._terminal import console as terminal
    from kdnas.cli._terminal import say

    varies = [parse_vary(text) for text in vary]
    loaded = read_study(study)
    folder = (out or continued or Path("runs") / loaded.config.name).resolve()
    console = terminal(stderr=as_json)
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():  # of a user's module too
            from kdnas.audit.comparing import plan_comparison
            from kdnas.controller.events import notes_to
            from kdnas.session import opened_study
            from kdnas.workshop import opening

            root = opening.data_root(data_root).resolve()

            observe = notes_to(lambda text: say(console, text))
            with opened_study(loaded, folder, data_root=root, observe=observe) as opened:
                comparison = plan_comparison(
                    opened, pick or [], varies, seeds=seeds, epochs=epochs, data_fraction=data_fraction
                )
                finished = _carry_out(opened, comparison, console, dry_run=dry_run)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues", err=True)
        raise typer.Exit(130) from None
    if as_json and finished is not None:
        from kdnas.report.comparison import document

        typer.echo(json.dumps(document(comparison, finished), indent=2, allow_nan=False))


def _carry_out(opened: Opened, comparison: Comparison, console: Console, *, dry_run: bool) -> Comparisons | None:
    """Train what is left, show and write what came of it, and return that; None where nothing is to be trained."""
    from kdnas.audit.comparing import kept, result_of, run_comparison
    from kdnas.cli._terminal import printed, say
    from kdnas.errors import RunError
    from kdnas.record.front import most_often
    from kdnas.report.comparison import sentences, table, write_comparison

    folder, score = opened.run.folder, opened.run.score
    there = kept(folder)
    left = [task for task in comparison.tasks if task.key(comparison.fidelity) not in there]
    archs = ", ".join(student.arch.arch_id for student in comparison.students)
    names = ", ".join(comparison.names)
    say(console, f"{counted(len(comparison.names), 'recipe')} for {archs}, {comparison.fidelity.words} each: {names}")
    done = len(comparison.tasks) - len(left)
    say(console, f"{counted(len(left), 'training')} to do" + (f" ({done} are there already)" if done else ""))
    if dry_run:
        return None
    progress = _Progress(console, score)
    run_comparison(opened, comparison, progress, notify=lambda line: say(console, line))
    if progress.failures and len(progress.failures) == progress.ended:
        raise RunError(f"every training of the comparison failed{most_often(progress.failures)}")
    result = result_of(comparison, score, kept(folder))
    console.print()
    console.print(printed(table(result)))
    console.print()
    for sentence in sentences(comparison, result):
        say(console, sentence)
    for path in write_comparison(folder, comparison, result, opened.space):
        say(console, f"wrote {path}")
    return result


class _Progress(TrainingLines):
    """Prints the trainings of a comparison as they end."""

    def __call__(self, event: Compared) -> None:
        """Print `event`."""
        task = event.task
        what = f"{task.student.arch.arch_id}  seed {task.seed}  {task.name}"
        outcome = "" if event.score is None else self._score.shown(event.score)
        self.print_end(event.done, event.total, what, outcome, event.failure)
