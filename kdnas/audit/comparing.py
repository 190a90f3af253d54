"""Recipes side by side: the same students trained by each on one budget, with the same seeds; which differences count.

A seed fixes a student's first weights and the views of the samples, whatever the recipe: scores are compared in pairs.
Every training is kept in the run's folder as soon as it ends, so that a comparison may be interrupted, or grow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdnas.audit.recipes import Vary, canonical, varied
from kdnas.controller.events import notes_to
from kdnas.controller.preparation import Opened
from kdnas.controller.waiting import work_off
from kdnas.controller.workers import start_executor
from kdnas.core.arch import Arch, Scalar
from kdnas.core.comparison import holm, paired_p_value
from kdnas.core.fidelity import Fidelity
from kdnas.core.interval import mean_ci95
from kdnas.core.objective import Quantity
from kdnas.core.seeds import derive_seed
from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.executors import Finished
from kdnas.faults import reach
from kdnas.outlets import Notify
from kdnas.record.front import beside, front, pick, picked_or_recommended
from kdnas.record.records import Result
from kdnas.regular import regular
from kdnas.study.config import DISTIL, StudyConfig
from kdnas.study.feasibility import sample_prices
from kdnas.study.tuning import final_recipe
from kdnas.training.recipe import Recipe
from kdnas.workshop.jobs import final_job

FOLDER = "compare"
_TRAININGS = "trainings.jsonl"
BY_SIZE = ("smallest", "median", "largest")
"""Students that a study has before any was searched for."""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Student:
    """One student of a comparison, with the settings that its search tuned."""

    arch: Arch
    tuned: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """What is asked for: each student by each of its `recipes`, all of one fidelity, with so many seeds."""

    config: StudyConfig
    students: tuple[Student, ...]
    recipes: tuple[Mapping[str, Recipe], ...]
    """Of each student, by what they are called: the same names in the same order."""
    seeds: int

    @property
    def names(self) -> list[str]:
        """What the recipes are called."""
        return list(self.recipes[0])

    @property
    def fidelity(self) -> Fidelity:
        """How long each training is."""
        return self.config.final_fidelity

    @property
    def tasks(self) -> list[Task]:
        """All trainings: a seed of everything first."""
        return [
            Task(student, name, recipes[name], seed)
            for seed in range(self.seeds)
            for student, recipes in zip(self.students, self.recipes, strict=True)
            for name in recipes
        ]


@dataclass(frozen=True)
class Task:
    """One training of a comparison."""

    student: Student
    name: str
    recipe: Recipe
    seed: int

    def key(self, fidelity: Fidelity) -> str:
        """What makes it that training and no other, as a hash."""
        identity = [self.student.arch.canonical_json, canonical(self.recipe), fidelity.as_dict(), self.seed]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Compared:
    """One training ended: its score, or why it failed. `done` of `total` have ended in this call."""

    task: Task
    score: float | None
    failure: str
    done: int
    total: int


def plan_comparison(
    opened: Opened,
    picks: Sequence[str],
    varies: Sequence[Vary],
    *,
    seeds: int,
    epochs: int | None = None,
    data_fraction: float | None = None,
) -> Comparison:
    """Return the comparison of an open study or run.

    A pick is one of a front, `smallest`, `median` or `largest` by MACs of a sample of the space; without any it is what
    the study exports, else the median one. Raises ConfigError with everything that cannot be compared.
    """
    config, evaluator = opened.config, opened.evaluator
    if config.evaluator.type != DISTIL:
        what = f"the evaluator {config.evaluator.called} trains no students here, so there are no recipes to compare"
        raise ConfigError(Problem("evaluator", what, DISTIL))
    stated = {"epochs": epochs, "data_fraction": data_fraction}
    final = config.final.model_copy(update={name: value for name, value in stated.items() if value is not None})
    config = config.model_copy(update={"final": final})
    if not config.final_fidelity.epochs:
        raise ConfigError(Problem("--epochs", "students have to be trained", "1 or more"))
    chosen = dict.fromkeys(picks) or {"": None}
    students = [_student(opened, text) for text in chosen]
    students = list({student.arch.arch_id: student for student in students}.values())
    finalists = opened.run.retrained
    recipes = [
        varied(final_recipe(config, student.tuned, beside(student.arch, finalists)), varies) for student in students
    ]
    problems: dict[str, Problem] = {}
    for student, named in zip(students, recipes, strict=True):
        for name, recipe in named.items():
            try:
                evaluator.check_recipe(recipe, student.arch)
            except ConfigError as error:
                problems |= {f"{name}: {each.what}": Problem(name, each.what, each.allowed) for each in error.problems}
    if problems:
        raise ConfigError(problems.values())
    if len(recipes[0]) < 2:
        raise ConfigError(Problem("--vary", "there is one recipe, and nothing to compare it with"))
    return Comparison(config, tuple(students), tuple(recipes), seeds)


def _student(opened: Opened, text: str) -> Student:
    run = opened.run
    if text in BY_SIZE or not (text or front(run)):
        evaluator, seed = opened.evaluator, derive_seed(opened.config.seed, "compared")
        limits = opened.config.limits
        sample = sample_prices(evaluator.space, evaluator.arch, evaluator.price, constraints=limits, seed=seed)
        by_macs = sorted(sample, key=lambda candidate: (candidate.costs["macs"], candidate.arch.arch_id))
        place = {"smallest": 0, "largest": -1}.get(text, len(by_macs) // 2)
        return Student(by_macs[place].arch)
    if text and not front(run):
        what = f"{run.folder} has no front to pick {text!r} from yet"
        raise ConfigError(Problem("--pick", what, ", ".join(BY_SIZE)))
    member = pick(run, text) if text else picked_or_recommended(run)
    assert member is not None  # there is a front
    return Student(member.trial.arch, member.trial.tuned)


def kept(folder: Path) -> dict[str, float]:
    """Return the scores of the trainings that the run in `folder` keeps, by their keys.

    Raises RunFolderError where the file is damaged; a last line that was cut short counts as none.
    """
    path = folder / FOLDER / _TRAININGS
    if not path.exists():
        return {}
    scores: dict[str, float] = {}
    try:
        lines = regular(path).read_bytes().split(b"\n")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        try:
            plain = json.loads(line) if line else None
            if plain is not None:
                scores[str(plain["key"])] = float(plain["score"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):
                break
            raise RunFolderError(f"{path} is damaged: line {number}: {error}") from error
    return scores


def run_comparison(
    opened: Opened, comparison: Comparison, observe: Callable[[Compared], None], notify: Notify = lambda line: None
) -> None:
    """Do what is left of `comparison`. Whatever interrupts it, what was done is kept."""
    folder, fidelity = opened.run.folder, comparison.fidelity
    there = kept(folder)
    waiting = deque(task for task in comparison.tasks if task.key(fidelity) not in there)
    total = len(waiting)
    if not waiting:
        return
    path = folder / FOLDER / _TRAININGS
    path.parent.mkdir(exist_ok=True)
    _end_line(path)

    noted = notes_to(notify, passing=False)
    executor = start_executor(opened, noted)
    running: dict[str, Task] = {}

    def begin() -> bool:
        if not waiting:
            return False
        task = waiting.popleft()
        running[task.key(fidelity)] = task
        job = final_job(comparison.config, 0, task.student.arch, task.student.tuned, task.seed)
        job = dataclasses.replace(job, recipe=task.recipe, test=False, checkpoint=None)
        executor.submit(task.key(fidelity), job, time_limit_s=comparison.config.time_limit_s(fidelity))
        return True

    def end(finished: Finished[Result]) -> None:
        task = running.pop(finished.key)
        score = None if finished.result is None else finished.result.values.get(opened.run.score.name)
        failure = "" if score is not None else finished.failure or "no reason was given"
        if score is not None and finished.result is not None:
            line = {
                "key": finished.key,
                "recipe": task.name,
                "arch_id": task.student.arch.arch_id,
                "seed": task.seed,
                "score": score,
                "train_seconds": finished.result.train_seconds,
            }
            _add_line(path, json.dumps(line))
        observe(Compared(task, score, failure, total - len(waiting) - len(running), total))

    try:
        work_off(executor, begin, end, noted)
    finally:
        executor.close()


def _add_line(path: Path, line: str) -> None:
    """Add a line to a file. Raises RunFolderError where it cannot be written."""
    try:
        reach("compare")
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror or error}") from error


def _end_line(path: Path) -> None:
    """Cut off what a killed process has left of a line."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])


# -- what came of it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A recipe's scores with one student: by seed, their mean, and half of its 95 % interval."""

    arch_id: str
    name: str
    scores: Mapping[int, float]
    mean: float
    ci95: float | None


@dataclass(frozen=True)
class Difference:
    """Two recipes over all pairs of trainings: by how much the `better` one is, and Holm's corrected p-value."""

    better: str
    worse: str
    gain: float
    pairs: int
    p_value: float


@dataclass(frozen=True)
class Comparisons:
    """What a comparison found: rows by student and recipe, and how every two recipes differ, the surest first."""

    score: Quantity
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    failed: int
    """Trainings that are missing."""

    @property
    def ranking(self) -> list[str]:
        """The recipes by the mean of their students' means, the best first."""
        means: dict[str, list[float]] = {}
        for row in self.rows:
            means.setdefault(row.name, []).append(self.score.minimised(row.mean))
        return sorted(means, key=lambda name: statistics.fmean(means[name]))

    def worse_than(self, name: str) -> list[str]:
        """Return the recipes that are worse than `name` beyond noise."""
        return [d.worse for d in self.differences if d.better == name and d.p_value < SIGNIFICANT]


def result_of(comparison: Comparison, score: Quantity, scores: Mapping[str, float]) -> Comparisons:
    """Return the comparison of the finished trainings, `scores` by their keys."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    missing = 0
    for task in comparison.tasks:
        value = scores.get(task.key(comparison.fidelity))
        if value is None:
            missing += 1
        else:
            found.setdefault((task.student.arch.arch_id, task.name), {})[task.seed] = value
    rows = tuple(
        Row(arch_id, name, by_seed, *mean_ci95(list(by_seed.values()))) for (arch_id, name), by_seed in found.items()
    )
    differences: list[Difference] = []
    p_values: list[float] = []
    for place, one in enumerate(comparison.names):
        for other in comparison.names[place + 1 :]:
            pairs = [
                (by_seed[seed], found[arch_id, other][seed])
                for (arch_id, name), by_seed in found.items()
                if name == one and (arch_id, other) in found
                for seed in by_seed
                if seed in found[arch_id, other]
            ]
            p_value = paired_p_value(*zip(*pairs, strict=True)) if pairs else None
            if p_value is None:
                continue
            gain = statistics.fmean(score.gain(a, b) for a, b in pairs)
            better, worse = (one, other) if gain >= 0 else (other, one)
            differences.append(Difference(better, worse, abs(gain), len(pairs), p_value))
            p_values.append(p_value)
    corrected = [
        dataclasses.replace(difference, p_value=p_value)
        for difference, p_value in zip(differences, holm(p_values), strict=True)
    ]
    return Comparisons(score, rows, tuple(sorted(corrected, key=lambda d: (d.p_value, -d.gain))), missing)


def settings_of(comparison: Comparison, name: str) -> dict[str, object]:
    """Return, plain, the sections of a study that make the recipe called `name` its own: at the study's own length."""
    recipe, own = comparison.recipes[0][name], comparison.config.training
    training = recipe.training.model_copy(
        update={
            "epochs": own.epochs,
            "data_fraction": own.data_fraction,
            "resolution_fraction": own.resolution_fraction,
        }
    )
    plain = Recipe(training=training, distillation=recipe.distillation).model_dump(mode="json", exclude_unset=True)
    return {"training": plain["training"], "distillation": plain["distillation"]}
