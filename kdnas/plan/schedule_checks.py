"""Whether a schedule can be followed: for this student, teacher, data and space, and step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from kdnas.core.arch import Arch
from kdnas.core.schedule import FinishedStage, Schedule
from kdnas.core.task import TaskSpec
from kdnas.errors import ConfigError, InputError, Problem
from kdnas.plan.schedules import (
    RANDOM,
    RUN_SUPERNET,
    TEACHER,
    DistilStep,
    Step,
    SupernetStep,
    TrainingSchedule,
    ladders_of,
)
from kdnas.plan.train_file import TrainFile
from kdnas.students import STUDENTS
from kdnas.study.yaml_lines import YamlDocument
from kdnas.training.shrinking import Recorded

_ROUNDED = 1e-3
"""A share may differ by so much from what the step's epochs are."""


def check_schedule(
    schedule: TrainingSchedule, document: YamlDocument, file: TrainFile, *, space: str = "", supernet: str = ""
) -> None:
    """Raise ConfigError where `schedule` is not for the training of `file`, or else everything that is wrong in it.

    `document` has its lines; `space` and `supernet` are the hashes of the run's search space and supernet, empty where
    there is none.
    """
    differences = [
        f"another {what} ({theirs}, here it is {ours})"
        for what, theirs, ours in (
            ("student", schedule.student.arch_id, file.arch_id),
            ("teacher", schedule.teacher.fingerprint, file.teacher_fingerprint),
            ("data set", schedule.data.fingerprint, file.data_fingerprint),
            ("search space", schedule.space, space),
            ("supernet", schedule.supernet.fingerprint if schedule.supernet else "", supernet),
        )
        if theirs and ours and theirs != ours
    ]
    if differences:
        raise ConfigError(Problem(document.name, f"is a schedule for {' and '.join(differences)}"))
    if schedule.supernet is not None and not supernet:
        what = "begins from the supernet that a search trained: name that run's folder, where the supernet still is"
        raise ConfigError(document.problem("supernet", what))
    problems = schedule_problems(schedule, file.task)
    if problems:
        raise ConfigError(document.in_order(problems))


def schedule_problems(schedule: TrainingSchedule, task: TaskSpec) -> list[Problem]:
    """Return everything that keeps `schedule` from being followed; `where` is the dotted key."""
    student, problems = _student(schedule, task)
    networks: dict[str, Arch | None] = {}
    for index, step in enumerate(schedule.steps):
        where = f"steps.{index}"
        if step.name in (*networks, TEACHER, RANDOM, RUN_SUPERNET):
            problems.append(Problem(f"{where}.name", f"{step.name!r} is already taken"))
        problems += _origin_problems(where, step, networks, schedule)
        try:
            network = step.network(task)
        except InputError as error:
            inner = ".choices" if isinstance(step, DistilStep) else ""
            part = f"{where}.arch{inner}" if inner else f"{where}.space"
            problems += [Problem(f"{part}.{p.where}".rstrip("."), p.what, p.allowed) for p in error.problems]
            networks[step.name] = None
            continue
        problems += _init_problems(where, step, network, {RUN_SUPERNET: student, **networks})
        if isinstance(step, SupernetStep):
            problems += _supernet_problems(where, step, schedule, task)
        else:
            problems += _share_problems(where, step, network, schedule, task)
        networks[step.name] = network
    last = networks.get(schedule.steps[-1].name)
    if student is not None and last is not None and last != student:
        what = f"the last step gives {last.arch_id}, not the student"
        problems.append(Problem(f"steps.{len(schedule.steps) - 1}", what, student.arch_id))
    total = sum(step.share for step in schedule.steps)
    if total > 1.0 + _ROUNDED:
        problems.append(Problem("steps", f"spend {total:.4g} of the budget together", "shares of 1 in all"))
    return problems


def _student(schedule: TrainingSchedule, task: TaskSpec) -> tuple[Arch | None, list[Problem]]:
    """Return the student, None where the file spells none, and what is wrong with it and the budget."""
    section, budget = schedule.student, schedule.budget
    try:
        family = STUDENTS.build(section.family)
        arch: Arch = family.canonical(section.choices)
        macs = family.price(arch, task).macs
    except ConfigError as error:
        return None, [
            Problem(f"student.choices.{p.where}" if p.where else "student.family", p.what, p.allowed)
            for p in error.problems
        ]
    problems = []
    if arch.arch_id != section.arch_id:
        what = f"is {section.arch_id}, but the choices are those of {arch.arch_id}: one was edited"
        problems.append(Problem("student.arch_id", what))
    if macs != budget.student_macs:
        problems.append(Problem("budget.student_macs", f"is {budget.student_macs}", str(macs)))
    whole = 3 * budget.student_macs * budget.images * budget.epochs
    if whole != budget.macs:
        what = f"is {budget.macs}, not 3 x student_macs x images x epochs"
        problems.append(Problem("budget.macs", what, str(whole)))
    return arch, problems


def _origin_problems(
    where: str, step: Step, earlier: Mapping[str, Arch | None], schedule: TrainingSchedule
) -> Iterator[Problem]:
    inits = (RANDOM,) if schedule.supernet is None else (RANDOM, RUN_SUPERNET)
    for part, given, own in (("teacher", step.teacher, (TEACHER,)), ("init", step.init, inits)):
        if given not in (*own, *earlier):
            yield Problem(f"{where}.{part}", f"{given!r} is no earlier step", ", ".join((*own, *earlier)))


def _init_problems(where: str, step: Step, network: Arch, earlier: Mapping[str, Arch | None]) -> Iterator[Problem]:
    origin = earlier.get(step.init)
    if origin is not None and origin != network:
        yield Problem(f"{where}.init", f"{step.init} gives {origin.arch_id}, this one trains {network.arch_id}")


def _share_problems(
    where: str, step: DistilStep, network: Arch, schedule: TrainingSchedule, task: TaskSpec
) -> Iterator[Problem]:
    macs = STUDENTS.build(network.family).price(network, task).macs
    share = distil_share(step.epochs, macs, schedule)
    if not math.isclose(share, step.share, rel_tol=_ROUNDED, abs_tol=_ROUNDED):
        yield Problem(f"{where}.share", f"is {step.share:g}, but {step.epochs} epochs are {share:.4g} of the budget")


def distil_share(epochs: int, macs: int, schedule: TrainingSchedule) -> float:
    """Return which share of the budget `epochs` of a network of `macs` are."""
    return epochs * macs / (schedule.budget.epochs * schedule.budget.student_macs)


def _supernet_problems(where: str, step: SupernetStep, schedule: TrainingSchedule, task: TaskSpec) -> list[Problem]:
    if step.settings.resolutions:
        return [Problem(f"{where}.settings.resolutions", "a schedule keeps the size of the data's images", "[]")]
    try:
        recorded = step.schedule
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return list(_damaged_stages(f"{where}.recorded", step, error))
    if recorded is None:
        return []
    problems = []
    budget = step.budget(schedule.budget.macs)
    if recorded.budget_macs != budget:
        what = f"is {recorded.budget_macs}, but the step's share is {budget}"
        problems.append(Problem(f"{where}.recorded.budget_macs", what))
    try:
        Recorded(ladders_of(step.search_space, task)[1], recorded)
    except ConfigError as error:
        problems += [Problem(f"{where}.recorded.stages", str(problem)) for problem in error.problems]
    return problems


def _damaged_stages(where: str, step: SupernetStep, error: Exception) -> Iterator[Problem]:
    """Yield what is wrong with each recorded stage; where each is sound, with the record around them."""
    stages = (step.recorded or {}).get("stages")
    sound = True
    for index, stage in enumerate(stages if isinstance(stages, list) else ()):
        try:
            FinishedStage.from_dict(stage)
        except (KeyError, TypeError, ValueError, AttributeError) as own:
            sound = False
            yield Problem(f"{where}.stages.{index}", f"is no recorded stage: {_said(own)}")
    if sound:
        yield Problem(where, f"holds no recorded stages: {_said(error)}", ", ".join(Schedule.__dataclass_fields__))


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
