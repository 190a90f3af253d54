"""Checks of what a study names: registry members with their options, and the quantities it optimises and bounds.

All of them read the plain YAML data, not the validated configuration, so that one mistake does not hide the others;
where the data has the wrong shape they report nothing, because the schema does. Nothing is imported but what is named.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pydantic

from kdnas.core.objective import OF_CLASSES, SCORES, Constraint, Quantity, score_among, score_named
from kdnas.core.pick import Near, parse_bound
from kdnas.datasets import kind_of
from kdnas.errors import ConfigError, Problem
from kdnas.plugins import is_plugin, short_name
from kdnas.registry import Registry, validation_problems
from kdnas.study.config import (
    DISTIL,
    Completions,
    DataConfig,
    ExecutorConfig,
    Member,
    PairedData,
    SamplerConfig,
    StudyConfig,
    TeacherConfig,
    task_named,
    trains_here,
)
from kdnas.training.recipe import LossTerm, training_for

# What the run itself hands to an executor; a study cannot set it there.
_EXECUTOR_BY_THE_RUN = {"workers": 1, "time_limit_s": 1.0, "devices": 0}


_PACKAGES = {
    "tasks": "kdnas.tasks",
    "proxies": "kdnas.proxies",
    "datasets": "kdnas.datasets",
    "teachers": "kdnas.teachers",
    "students": "kdnas.students",
    "losses": "kdnas.losses",
    "costs": "kdnas.costs",
    "evaluators": "kdnas.workshop.evaluators",
    "samplers": "kdnas.samplers",
    "executors": "kdnas.executors",
    "exporters": "kdnas.exporters",
    "trackers": "kdnas.trackers",
    "targets": "kdnas.targets",
    "policies": "kdnas.training.supernet.policies",
}
FAMILIES = tuple(_PACKAGES)
"""What a study can name members of. Each family's package holds its registry under the family's name in capitals."""
TRAINED_HERE = ("student", "parties")
"""The teachers that are student families' members, trained for the study."""


def registry_of(family: str) -> Registry[Any]:
    """Return the registry of `family`, one of FAMILIES; its contract is imported, none of its members is."""
    registry: Registry[Any] = getattr(importlib.import_module(_PACKAGES[family]), family.upper())
    return registry


def member_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the members that the study `data` names; `where` is the dotted key."""
    return [
        *_task(data),
        *_section(data, "evaluator", "evaluators", Member),
        *_needs(data),
        *_section(data, "data", "datasets", DataConfig),
        *_teacher(data, "teacher", data.get("teacher")),
        *_further_teachers(data),
        *_losses(data),
        *_proxy(data),
        *_section(data, "sampler", "samplers", SamplerConfig),
        *_executor(data),
        *_export(data),
        *_trackers(data),
    ]


def quantity_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the objectives, constraints and cost options of the study `data`."""
    return [*_objectives(data), *_constraints(data), *_cost_options(data)]


def option_problems(registry: Registry[Any], where: str, name: str, options: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with building member `name` from `options`, placed under the key `where`."""
    try:
        problems = registry.problems(name, options)
    except ImportError as error:
        return [Problem(f"{where}.type", f"{name!r} cannot be used on this machine: {error}; see `kdnas doctor`")]
    return [Problem(f"{where}.{problem.where}", problem.what, problem.allowed) for problem in problems]


def _section(data: Mapping[str, Any], key: str, family: str, model: type[Member]) -> list[Problem]:
    section = model.spelled_out(data.get(key))
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        return []
    options = {name: value for name, value in section.items() if name not in model.model_fields}
    return option_problems(registry_of(family), key, section["type"], options)


def _task(data: Mapping[str, Any]) -> list[Problem]:
    named = data.get("task")
    problems = registry_of("tasks").problems(named, {}) if isinstance(named, str) else []
    return [Problem("task", problem.what, problem.allowed) for problem in problems]


def _needs(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what the evaluator needs and the study does not state."""
    section, registry = data.get("evaluator", DISTIL), registry_of("evaluators")
    name = section.get("type") if isinstance(section, dict) else section
    with contextlib.suppress(ConfigError, ImportError):  # reported above
        for key in getattr(registry.get(str(name)), "needs", ()):
            if key in StudyConfig.model_fields and data.get(key) is None:
                yield Problem(key, f"is required by the evaluator {short_name(str(name))}")


def _further_teachers(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the teachers after the first."""
    others = data.get("further_teachers")
    for name, section in others.items() if isinstance(others, dict) else ():
        yield from _teacher(data, f"further_teachers.{name}", section)


def _teacher(data: Mapping[str, Any], where: str, section: Any) -> Iterator[Problem]:
    """Yield what is wrong with a teacher, and with the samples that it is given."""
    yield from _section({where: section}, where, "teachers", TeacherConfig)
    yield from _student_teacher(data, where, section)
    given = section.get("data") if isinstance(section, dict) else None
    yield from _section({f"{where}.data": given}, f"{where}.data", "datasets", PairedData)


def _student_teacher(data: Mapping[str, Any], where: str, section: Any) -> Iterator[Problem]:
    """Yield what is wrong inside a teacher of student families' members that are trained here."""
    if not isinstance(section, dict) or section.get("type") not in TRAINED_HERE:
        return
    training, family, choices = section.get("training"), section.get("family"), section.get("choices")
    if isinstance(training, dict):
        try:
            section = training_for(task_named(data))
        except (ConfigError, ImportError):
            return  # reported above
        try:
            section.model_validate(training)
        except pydantic.ValidationError as error:
            for problem in validation_problems(error, section):
                yield Problem(f"{where}.training.{problem.where}", problem.what, problem.allowed)
    students = registry_of("students")
    unknown = [p for p in students.problems(family, {}) if p.where == "type"] if isinstance(family, str) else []
    yield from (Problem(f"{where}.family", problem.what, problem.allowed) for problem in unknown)
    if isinstance(family, str) and not unknown and isinstance(choices, dict):
        from kdnas.students import stated_arch

        try:
            stated_arch(family, choices)
        except ConfigError as error:
            for problem in error.problems:
                yield Problem(f"{where}.choices.{problem.where}".rstrip("."), problem.what, problem.allowed)


def _losses(data: Mapping[str, Any]) -> Iterator[Problem]:
    final = data.get("final")
    sections = {"distillation": data, "final.distillation": final if isinstance(final, dict) else {}}
    for where, section in sections.items():
        distillation = section.get("distillation")
        terms = distillation.get("losses") if isinstance(distillation, dict) else None
        for index, term in enumerate(terms if isinstance(terms, list) else []):
            if isinstance(term, dict) and isinstance(term.get("type"), str):
                options = {name: value for name, value in term.items() if name not in LossTerm.model_fields}
                yield from option_problems(registry_of("losses"), f"{where}.losses.{index}", term["type"], options)


def _executor(data: Mapping[str, Any]) -> list[Problem]:
    section = data.get("executor", ExecutorConfig().type)
    section = {"type": section} if isinstance(section, str) else section
    if not isinstance(section, dict) or not isinstance(section.get("type", "local"), str):
        return []
    own = {name: value for name, value in section.items() if name not in ExecutorConfig.model_fields}
    problems = [
        Problem(f"executor.{name}", "is set by the run, not in the study")
        for name in own
        if name in _EXECUTOR_BY_THE_RUN
    ]
    registry = registry_of("executors")
    name = section.get("type", ExecutorConfig().type)
    try:
        known = set(registry.options(name).model_fields)
    except (ConfigError, ImportError):
        known = set()  # reported below
    by_the_run = {key: value for key, value in _EXECUTOR_BY_THE_RUN.items() if key in known}
    return problems + option_problems(registry, "executor", name, {**own, **by_the_run})


def _export(data: Mapping[str, Any]) -> Iterator[Problem]:
    section = data.get("export")
    if not isinstance(section, dict):
        return
    registry = registry_of("exporters")
    formats = section.get("formats", [])
    for index, name in enumerate(formats if isinstance(formats, list) else []):
        # Built-in ones are not imported, which would bring their packages.
        if isinstance(name, str) and (is_plugin(name) or registry.missing(name)):
            for problem in registry.problems(name, {}):
                yield Problem(f"export.formats.{index}", problem.what, problem.allowed)


def _proxy(data: Mapping[str, Any]) -> list[Problem]:
    training = data.get("training")
    if not isinstance(training, dict):
        return []
    return _section({"training.proxy": training.get("proxy")}, "training.proxy", "proxies", Member)


def _trackers(data: Mapping[str, Any]) -> Iterator[Problem]:
    section = data.get("trackers")
    for index, tracker in enumerate(section if isinstance(section, list) else []):
        spelled = Member.spelled_out(tracker)
        if isinstance(spelled, dict) and isinstance(spelled.get("type"), str):
            options = {name: value for name, value in spelled.items() if name != "type"}
            yield from option_problems(registry_of("trackers"), f"trackers.{index}", spelled["type"], options)


def _objectives(data: Mapping[str, Any]) -> Iterator[Problem]:
    names = data.get("objectives", list(StudyConfig.model_fields["objectives"].default))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return
    costs, completed = _cost_names(data), _completions(data)
    known = [*SCORES, *costs, *completed.values()]
    for index, name in enumerate(names):
        if name not in known and score_named(name) not in OF_CLASSES:
            yield Problem(f"objectives.{index}", f"no quantity is called {name!r}", ", ".join(known))
        elif name in names[:index]:
            yield Problem(f"objectives.{index}", f"{name!r} stands twice")
    for index, name in completed.items():
        if name in (*SCORES, *costs):
            yield Problem(
                f"final.completions.{index}.name", f"{name!r} is the name of another quantity", "a name of its own"
            )
    of_tasks = {score.name for name in names if (score := score_named(name)) is not None}
    scores, own = [name for name in names if name in SCORES], [score.name for score in _scores_of_data(data)]
    if len(of_tasks) != 1 or len(scores) > 1:
        yield Problem("objectives", "must include one score", ", ".join(own or SCORES))
    elif own and not of_tasks <= set(own):
        (kind,) = of_tasks
        place = next(index for index, name in enumerate(names) if score_named(name) == SCORES[kind])
        what = f"what learns from this kind of data is not scored by {kind}"
        yield Problem(f"objectives.{place}", what, ", ".join(own))


def _completions(data: Mapping[str, Any]) -> dict[int, str]:
    """Return by their places the names of what students complete, where they are trained here."""
    final = data.get("final")
    stated = final.get("completions") if isinstance(final, dict) else None
    if not isinstance(stated, list) or not trains_here(data):
        return {}
    found = {}
    for place, one in enumerate(stated):
        with contextlib.suppress(pydantic.ValidationError):  # the schema has reported it
            found[place] = Completions.model_validate(one).name
    return found


def _scores_of_data(data: Mapping[str, Any]) -> tuple[Quantity, ...]:
    """Return what kdnas can score students by on the study's data; empty where the kind of data set leaves it open."""
    section = DataConfig.spelled_out(data.get("data"))
    if not trains_here(data) or not isinstance(section, dict):
        return ()
    return kind_of(str(section.get("type"))).scores


def _constraints(data: Mapping[str, Any]) -> Iterator[Problem]:
    texts, names = data.get("constraints"), data.get("objectives")
    score = score_among(names if isinstance(names, list) and all(isinstance(name, str) for name in names) else ())
    bounds: dict[int, Constraint] = {}
    of_teacher: dict[int, Constraint | Near] = {}
    for index, text in enumerate(texts if isinstance(texts, list) else []):
        try:
            bound = parse_bound(text, score)
        except (ValueError, TypeError, AttributeError):
            continue  # the schema has reported it
        if isinstance(bound, Near) or bound.percent:
            of_teacher[index] = bound
        if isinstance(bound, Constraint):
            bounds[index] = bound
    if data.get("teacher") is None:
        for index, bound in of_teacher.items():
            yield Problem(f"constraints.{index}", f"{bound} speaks of the teacher, and the study has none")
    costs = _cost_names(data)
    for index, bound in bounds.items():
        where = f"constraints.{index}"
        if bound.name == score.name and not bound.is_goal_for(score):
            high = score.direction == "maximize"
            what = "high: it can be bounded from below only" if high else "low: it can be bounded from above only"
            yield Problem(where, f"{score.name} is to be {what}", f"such as {score.name}{'>=0.9' if high else '<=20'}")
        elif bound.name == score.name:
            pass
        elif bound.name not in costs:
            yield Problem(where, f"no cost is called {bound.name!r}", ", ".join(costs))
        elif bound.operator == "<=" and bound.bound <= 0:
            yield Problem(where, f"no student can meet {bound}: every cost is above 0")
        for other in (bounds[earlier] for earlier in bounds if earlier < index):
            if other.name == bound.name and other.operator == bound.operator:
                yield Problem(where, f"{bound.name} is bounded twice: {other} and {bound}")
            elif other.name == bound.name and other.percent == bound.percent and _contradict(other, bound):
                yield Problem(where, f"no student can meet both {other} and {bound}")


def _contradict(one: Constraint, other: Constraint) -> bool:
    return replace(one, percent=False).violation(other.bound) > 0


def _cost_options(data: Mapping[str, Any]) -> Iterator[Problem]:
    section = data.get("costs")
    registry = registry_of("costs")
    for name, stated in section.items() if isinstance(section, dict) else ():
        if not isinstance(stated, dict):
            continue
        options = dict(stated)
        kind = options.pop("type", name)
        if not isinstance(kind, str):
            yield Problem(f"costs.{name}.type", f"must be the name of a cost, got {kind!r}")
        elif problems := option_problems(registry, f"costs.{name}", kind, options):
            untyped = f"costs.{name}.type" if "type" not in stated else ""
            yield from (replace(p, where=f"costs.{name}") if p.where == untyped else p for p in problems)
        elif (own := registry.get(kind).quantity.name) != name:
            yield Problem(f"costs.{name}", f"{short_name(kind)} is the cost {own}: state it under that name")


def _cost_names(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the costs that there are: built-in ones, and those to which the study gives a type."""
    section = data.get("costs")
    own = section if isinstance(section, dict) else {}
    typed = [name for name, options in own.items() if isinstance(options, dict) and "type" in options]
    return list(dict.fromkeys([*registry_of("costs").names(), *typed]))
