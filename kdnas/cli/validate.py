"""`kdnas validate`: every problem of a study at once, or what it resolves to."""

from __future__ import annotations

import dataclasses
import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdnas.cli._options import DataRoot, Json, Overrides, StudyPath, TrustCode, allow_code_of_run
from kdnas.core.fidelity import Fidelity
from kdnas.core.words import counted, printable
from kdnas.errors import InputError, Problem
from kdnas.plugins import short_name

if TYPE_CHECKING:
    from kdnas.core.objective import Quantity
    from kdnas.core.space import SearchSpace
    from kdnas.record.lock import TeacherReport
    from kdnas.study.config import DataConfig, StudyConfig
    from kdnas.study.loading import LoadedStudy
    from kdnas.study.tune import Tuned
    from kdnas.training.recipe import Distillation


_MISSING = "MISSING"


def command(
    study: StudyPath,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    open_all: Annotated[
        bool,
        typer.Option(
            "--open",
            help="Also read the data, make the teacher (one that is trained here is trained and kept), check it, try "
            "every loss and look for students within the constraints: all that a search does before its first student. "
            "Only then is it known what size the teacher's library brings samples to, and which classes it names.",
        ),
    ] = False,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Check a study without running it.

    Prints every problem at once, each with its line, or else what the study resolves to. Only the YAML is read, and no
    library of teachers is imported, unless --open is given. Ends with status 2 when something is wrong.

    Examples:
      kdnas validate studies/digits
      kdnas validate my-study --set budget.trials=100 --open
    """
    from kdnas.record.started_study import read_study, run_folder
    from kdnas.workshop.opening import data_root as resolved_data_root

    try:
        if (open_all or trust_code) and (run := run_folder(study)) is not None:
            allow_code_of_run(run, resolved_data_root(data_root), trust_code)
        loaded = read_study(study, overrides or ())
        resolved = summary(loaded, data_root)
        found = opened(loaded, data_root, notify=lambda line: typer.echo(line, err=True)) if open_all else None
    except InputError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"ok": False, "problems": [_plain(problem) for problem in error.problems]}, indent=2))
        raise typer.Exit(error.exit_code) from None
    facts = dataclasses.asdict(resolved) | ({} if found is None else found.document())
    if as_json:
        typer.echo(json.dumps({"ok": True, "problems": [], **facts}, indent=2))
        return
    facts.pop("data_notes", None)  # printed while it was opened
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {_text(value)}")
    missing = sum(file.endswith(f"({_MISSING})") for file in resolved.files)
    typer.echo("ok" if not missing else f"ok, but {missing} of the files {'is' if missing == 1 else 'are'} missing")


@dataclass(frozen=True)
class Resolved:
    """What a study resolves to, in words, by what they are about; in the order in which they are printed."""

    study: str
    evaluator: str
    data: str
    teacher: str
    space: str
    objectives: list[str]
    constraints: list[str]
    losses: list[str]
    tuned: list[str]
    sampler: str
    supernet: str
    budget: str
    final: str
    export_pick: str
    export: list[str]
    data_root: str
    cache: str
    files: list[str]


@dataclass(frozen=True)
class Opened:
    """What only opening shows: `description` and `cutting` as its evaluator has them, the teachers as measured."""

    description: Mapping[str, str]
    space: str
    """Of students cut out of their teacher; empty for others."""
    cutting: Mapping[str, list[str]]
    teacher: TeacherReport | None
    further_teachers: Mapping[str, TeacherReport]
    score: Quantity
    students: list[str]
    within_constraints: str

    def document(self) -> dict[str, str | list[str]]:
        """Return it in words by topic, as it is printed."""
        shown: dict[str, str | list[str]] = {**self.description}
        if self.space:
            shown["space"] = self.space
        shown |= self.cutting
        if self.teacher is not None:
            shown["teacher_measured"] = _measured(self.teacher, self.score)
            shown["teacher_outputs"] = self.teacher.outputs
            shown["teacher_notes"] = list(self.teacher.notes)
        shown |= {f"teacher_{name}": _measured(report, self.score) for name, report in self.further_teachers.items()}
        return shown | {"students": self.students, "within_constraints": self.within_constraints}


def summary(loaded: LoadedStudy, data_root: Path | None) -> Resolved:
    """Return what the study resolves to. Only looks whether files are there."""
    from kdnas.controller.stopping import budget_in_words
    from kdnas.study.config import DISTIL
    from kdnas.workshop.opening import cache_dir
    from kdnas.workshop.opening import data_root as resolved_data_root

    config, space, root = loaded.config, loaded.space, resolved_data_root(data_root)
    budget, final, trains = config.budget, config.final, config.evaluator.type == DISTIL
    return Resolved(
        study=config.name,
        evaluator=short_name(config.evaluator.type),
        data="none" if config.data is None else f"{short_name(config.data.type)}, {_held_out(config.data)}",
        teacher=_teachers(config),
        space="students cut out of the teacher, which --open reads"
        if not isinstance(config.space, str)
        else f"{space.name}: {short_name(space.family) or 'no family'}, {_size(space)}",
        objectives=list(config.objectives),
        constraints=list(config.constraints),
        losses=_losses(config.distillation) if trains else [],
        tuned=[f"{name} ({_offered(asked)})" for name, asked in sorted(config.tune.items())],
        sampler=short_name(config.sampler.type),
        supernet="none"
        if config.supernet is None or not config.shares_weights
        else f"the work of {Fidelity(config.supernet.epochs).words} of its largest student, "
        f"shrinking {short_name(config.supernet.shrinking.policy)}",
        budget=f"{budget_in_words(budget)}; a score is of "
        f"{' or '.join(fidelity.words for fidelity in config.fidelities)}, at most {budget.trial_time_limit_s:g} s",
        final=f"up to {counted(final.max_students, 'student')} retrained with {counted(final.seeds, 'seed')}, "
        f"{config.final_fidelity.words}"
        + (f" or more, until flat, at most {final.max_epochs}" if final.until == "flat" else ""),
        export_pick=config.export.pick if trains else "none",
        export=list(map(short_name, config.export.formats)) if trains else [],
        data_root=str(root.absolute()),
        cache=str(cache_dir()),
        files=[
            f"{path} ({'there' if _is_there(path) else _MISSING})" for path in _named_files(loaded, root.absolute())
        ],
    )


def _losses(distillation: Distillation) -> list[str]:
    terms = [f"{term.weight:g} {term.words}" for term in distillation.losses]
    return [f"{distillation.task_weight:g} cross entropy", *terms]


def _held_out(data: DataConfig) -> str:
    if data.states_validation:
        return "; ".join(filter(None, ("scores on the validation split that it states", data.unused)))
    return f"{data.validation_fraction:.0%} of the training split held out for scores"


def _size(space: SearchSpace) -> str:
    return f"{counted(len(space.choices), 'choice')}, {space.count():,} distinct settings"


def _offered(asked: Tuned) -> str:
    if isinstance(asked, tuple):
        return " | ".join(map(str, asked))
    return f"{asked.low:g} to {asked.high:g}"


def _is_there(path: Path) -> bool:
    """Whether a file is there, or the archive that it is a member of."""
    return path.exists() or any(above.is_file() for above in path.parents)


def _named_files(loaded: LoadedStudy, root: Path) -> list[Path]:
    """Return the files under the data root that data and teacher name."""
    config = loaded.config
    data, teacher, evaluator = (
        section.options if section is not None else {} for section in (config.data, config.teacher, config.evaluator)
    )
    named = [data.get(name) for name in ("path", "train", "validation", "test")]
    named += [teacher.get("weights"), evaluator.get("file")]
    for code in (data.get("factory"), data.get("function"), teacher.get("factory"), evaluator.get("function")):
        if isinstance(code, str) and code.rpartition(":")[0].endswith(".py"):
            named.append(code.rpartition(":")[0])
    paths = [path for name in named for path in (name if isinstance(name, list) else [name])]
    return [root / Path(path).expanduser() for path in paths if isinstance(path, str) and not glob.has_magic(path)]


def opened(loaded: LoadedStudy, data_root: Path | None, notify: Any) -> Opened:
    """Return what only opening shows: the data's shape, the teacher as it is measured, what students cost.

    Everything is opened, checked and measured as a search does that begins. Raises InputError where that would.
    """
    from kdnas.controller.preparation import examine
    from kdnas.workshop.evaluators import EvaluatorContext, open_evaluator
    from kdnas.workshop.numerics import settled_config
    from kdnas.workshop.opening import cache_dir, resolve_device
    from kdnas.workshop.opening import data_root as resolved_data_root

    device = resolve_device(loaded.config.device)
    study = dataclasses.replace(loaded, config=settled_config(loaded.config, device, None))
    root, cache = resolved_data_root(data_root), cache_dir()
    evaluator = open_evaluator(
        EvaluatorContext(
            study.config, study.space, Path(), root, cache, str(device), notify=lambda line: notify(printable(line))
        )
    )
    found = examine(study, evaluator)
    limits, sample = found.config.limits, found.sample
    cheap = [bound for bound in limits if bound.name in sample[0].costs]
    within = sum(all(bound.violation(priced.costs[bound.name]) <= 0 for bound in cheap) for priced in sample)
    ranges = {name: [priced.costs[name] for priced in sample] for name in sample[0].costs}
    cut_out = not isinstance(study.config.space, str)
    return Opened(
        description=evaluator.description,
        space=f"cut out of the teacher, {_size(evaluator.space)}" if cut_out else "",
        cutting=evaluator.cutting,
        teacher=found.lock.teacher,
        further_teachers=found.lock.further_teachers,
        score=study.config.score,
        students=[f"{name} {min(values):,.0f} to {max(values):,.0f}" for name, values in ranges.items()],
        within_constraints=f"{within / len(sample):.1%} of {len(sample):,} random students",
    )


def _teachers(config: StudyConfig) -> str:
    named = {name: short_name(teacher.type) for name, teacher in config.teachers.items()}
    if len(named) < 2:
        return next(iter(named.values()), "none")
    return ", ".join(f"{name} ({kind})" for name, kind in named.items())


def _measured(report: TeacherReport, score: Quantity) -> str:
    costs = ", ".join(
        f"{name} {value:,.4g}" if name.endswith("_ms") else f"{name} {value:,.0f}"
        for name, value in report.values.items()
    )
    return f"validation {score.name} {score.shown(report.score)}; {costs}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ("; " if any(", " in item for item in value) else ", ").join(value) if value else "none"
    return str(value)


def _plain(problem: Problem) -> dict[str, str]:
    return {"where": problem.where, "what": problem.what, "allowed": problem.allowed}
