"""Students that somebody queued, to be scored before those that the search proposes.

They wait in the record: from a file of the user's, from Optuna's `enqueue_trial` or from its dashboard. They are read
against the space before anything is asked of them: what nobody could train is refused, or closed with a reason.

A file is YAML or JSON: the choices as the space file names them, by themselves or under `choices`; an exported
student.json or train.yaml, whose `arch` is taken; or a list of these. Tuned settings may stand next to the choices;
those left out are the sampler's to propose.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kdnas.controller.events import Note, Observer
from kdnas.controller.preparation import Opened
from kdnas.controller.promotion import student_key
from kdnas.core.arch import Arch, Scalar
from kdnas.core.objective import breaches
from kdnas.core.space import SearchSpace
from kdnas.core.words import counted
from kdnas.errors import ConfigError, Problem
from kdnas.plain_yaml import read_plain
from kdnas.record.storage import distributions
from kdnas.study.config import StudyConfig
from kdnas.study.spaces import arch_of
from kdnas.study.tuning import Tuning

ArchFor = Callable[[Mapping[str, Scalar]], Arch]


def queued_values(
    fixed: Mapping[str, object], space: SearchSpace, domain: Mapping[str, BaseDistribution]
) -> dict[str, Scalar]:
    """Return what a queued trial states of `domain`, as the space spells it; what it leaves out is open.

    A choice that the space fixes may be stated too. Raises ConfigError with every value that the space does not have.
    """
    values: dict[str, Scalar] = {}
    problems = []
    for name, value in fixed.items():
        if name in domain:
            known = _value(value, domain[name])
            if known is None:
                problems.append(Problem(name, f"has no value {value!r}", _allowed(domain[name])))
            else:
                values[name] = known
        elif name not in space.fixed:
            problems.append(Problem(name, "is no choice of the space", ", ".join([*domain, *space.fixed])))
        elif not _alike(value, space.fixed[name]):
            problems.append(Problem(name, f"has no value {value!r}", repr(space.fixed[name])))
    if problems:
        raise ConfigError(problems)
    return values


def _value(value: Any, distribution: BaseDistribution) -> Scalar | None:
    """Return `value` as `distribution` spells it, None where it does not hold it."""
    if isinstance(distribution, CategoricalDistribution):
        return next((choice for choice in distribution.choices if _alike(value, choice)), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    if not distribution.low <= value <= distribution.high:
        return None
    if isinstance(distribution, FloatDistribution):
        return float(value)
    return int(value) if (value - distribution.low) % distribution.step == 0 else None


def _alike(value: Any, choice: Any) -> bool:
    """Whether two scalars are the same value: 1 is 1.0, but no truth value and no text."""
    numbers = [isinstance(one, (int, float)) and not isinstance(one, bool) for one in (value, choice)]
    return bool(value == choice) and (all(numbers) or type(value) is type(choice))


def _allowed(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    step = f" in steps of {distribution.step}" if isinstance(distribution, IntDistribution) else ""
    return f"{distribution.low:g} to {distribution.high:g}{step}"


@dataclass(frozen=True)
class HandMade:
    """One student of a file: what it states of the space's choices and of tuned settings."""

    where: str
    """The file, and the place in its list."""
    arch: Arch
    values: Mapping[str, Scalar]


def read_students(
    paths: Sequence[Path], config: StudyConfig, space: SearchSpace, arch_for: ArchFor | None = None
) -> list[HandMade]:
    """Return the students in the files `paths`. Raises ConfigError with everything in them that the space has not.

    `arch_for` makes an arch of a space that was read off a teacher; others need none.
    """
    arch_for = arch_for or functools.partial(arch_of, space)
    students: list[HandMade] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            students += [_student(where, record, config, space, arch_for) for where, record in _records(path)]
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return students


def enqueue(opened: Opened, students: Sequence[HandMade], observe: Observer) -> None:
    """Put `students` before everything else that the search of `opened` would train; report those that it holds.

    Raises ConfigError, and queues nobody, where one breaks a constraint that is known without training.
    """
    problems = []
    for student in students:
        price = opened.evaluator.price(student.arch)
        for broken in breaches(price, opened.config.limits, known_only=True):
            problems.append(Problem(student.where, f"the student breaks {broken}"))
    if problems:
        raise ConfigError(problems)
    known = {student_key(t.arch, t.tuned): t.number for t in opened.run.trials if t.state != "interrupted"}
    tuning = Tuning(opened.config)
    waiting = [dict(queued.stated) for queued in opened.record.waiting()]
    queued = 0
    for student in students:
        tuned = tuning.stated(student.values)
        number = None if tuned is None else known.get(student_key(student.arch, tuned))
        if number is not None:
            observe(Note(f"{student.where} is the student of trial {number} already"))
        elif dict(student.values) not in waiting:
            opened.record.enqueue(student.values, student.where)
            waiting.append(dict(student.values))
            queued += 1
    if queued:
        observe(Note(f"{counted(queued, 'student')} made by hand {'goes' if queued == 1 else 'go'} first"))


def _records(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (where, plain student) of each in the file. Raises ConfigError where it cannot be read as such."""
    try:
        data = read_plain(path)
    except (OSError, ValueError) as error:
        raise ConfigError(Problem(str(path), f"cannot be read: {' '.join(str(error).split())[:200]}")) from None
    several = data if isinstance(data, list) else [data]
    if not several or not all(isinstance(record, dict) and record for record in several):
        what = "is no student: a mapping of choices to values, a list of such, or an exported student.json"
        raise ConfigError(Problem(str(path), what))
    places = [str(path)] if not isinstance(data, list) else [f"{path}[{place}]" for place in range(len(several))]
    return list(zip(places, several, strict=True))


def _student(
    where: str, record: Mapping[str, Any], config: StudyConfig, space: SearchSpace, arch_for: ArchFor
) -> HandMade:
    family, stated = _stated(where, record)
    if family is not None and family != (space.family or space.name):
        what = f"is a student of the family {family}, and the space {space.name} has others"
        raise ConfigError(Problem(where, what, space.family or space.name))
    domain = distributions(space, config.tune)
    try:
        values = queued_values(stated, space, domain)
        whole, arch = _completed(values, space, arch_for)
    except ConfigError as error:
        raise ConfigError(
            Problem(f"{where}: {problem.where}".removesuffix(": "), problem.what, problem.allowed)
            for problem in error.problems
        ) from None
    return HandMade(where, arch, whole)


def _stated(where: str, record: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the family, where the record names it, and the values it states."""
    inner = record.get("arch", record)
    if not isinstance(inner, dict):
        raise ConfigError(Problem(where, "arch is no mapping of choices to values"))
    family = inner.get("family")
    choices = inner.get("choices", {name: value for name, value in inner.items() if name != "family"})
    tuned = record.get("tuned", {})
    if not isinstance(choices, dict) or not isinstance(tuned, dict):
        raise ConfigError(Problem(where, "choices and tuned must be mappings of names to values"))
    dotted = {} if choices is inner or "choices" not in inner else {n: v for n, v in inner.items() if "." in str(n)}
    return family, {str(name): value for name, value in {**dotted, **choices, **tuned}.items() if name != "tuned"}


def _completed(values: Mapping[str, Scalar], space: SearchSpace, arch_for: ArchFor) -> tuple[dict[str, Scalar], Arch]:
    """Return `values` with a value of every choice that is left out, and the arch.

    A choice may be left out where that means the same as one of its values: a stage that is not there, an option of it,
    or the family's default. Raises ConfigError naming each choice that is missing.
    """
    stated = {choice.name: values[choice.name] for choice in space.choices if choice.name in values}
    wanted = arch_for(stated)
    whole, missing = dict(values), []
    for choice in space.choices:
        if choice.name not in values:
            same = [v for v in choice.values if _stands_for({**stated, choice.name: v}, wanted, arch_for)]
            missing += [] if same else [choice]
            whole[choice.name] = same[0] if same else choice.values[0]
    arch = arch_for({choice.name: whole[choice.name] for choice in space.choices})
    if missing and arch != wanted:
        raise ConfigError(Problem(choice.name, "is missing", ", ".join(map(str, choice.values))) for choice in missing)
    return whole, arch


def _stands_for(stated: Mapping[str, Scalar], wanted: Arch, arch_for: ArchFor) -> bool:
    with contextlib.suppress(ConfigError):  # an option of a stage that is not there
        return arch_for(stated) == wanted
    return False
