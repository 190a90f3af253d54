"""Reading a study: YAML, overrides, schema, and everything that can be checked without opening data or teacher.

`load_study` reports all problems at once, each with file and line. Nothing is imported but what the study names.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from kdnas.core.space import SearchSpace
from kdnas.core.words import command_line
from kdnas.errors import ConfigError, Problem
from kdnas.plugins import adopted
from kdnas.registry import validation_problems
from kdnas.study.config import StudyConfig, task_kind, task_named, with_the_tasks_score
from kdnas.study.earlier import in_present_words
from kdnas.study.members import member_problems, quantity_problems, registry_of
from kdnas.study.rungs import library_problems, rung_problems, start_problems, table_problems
from kdnas.study.secrets import secret_problems
from kdnas.study.spaces import derived_space, load_space, space_of
from kdnas.study.teachers import teacher_problems
from kdnas.study.yaml_lines import KeyPath, YamlDocument, parse_value, read_yaml
from kdnas.training.recipe import for_task

STUDY_FILE = "study.yaml"

_MEMBER_SECTIONS = ("evaluator", "data", "teacher", "sampler", "executor")


@dataclass(frozen=True)
class LoadedStudy:
    """A study that can be run: its configuration with every default resolved, its folder, and its search space.

    Paths in the configuration are relative to `folder`.
    """

    config: StudyConfig
    folder: Path
    space: SearchSpace


def load_study(path: Path, overrides: Sequence[str] = ()) -> LoadedStudy:
    """Return the study at `path`, a folder with a study.yaml or a YAML file, with `key.sub=value` overrides applied.

    Raises ConfigError with every problem, spelled `study.yaml:12: dotted.key: what (allowed: ...)` and sorted by line.
    """
    file = study_file(path)
    document, problems = apply_overrides(with_first_teacher(read_yaml(file)), overrides)
    problems += document.in_order(secret_problems(document.data))
    return check_study(own_study(document, file.parent), file.parent, problems)


def study_of(document: YamlDocument, folder: Path, settings: Sequence[str] = ()) -> LoadedStudy:
    """Return the study that plain data spell, with `key.sub=value` settings applied; `space` may be a space's own keys.

    Raises ConfigError with every problem.
    """
    changed, problems = apply_overrides(with_first_teacher(document), settings)
    problems += changed.in_order(secret_problems(changed.data))
    changed = own_study(changed, folder)
    space = changed.data.get("space")
    if not isinstance(space, dict) or "derive" in space:
        return check_study(changed, folder, problems)
    name = str(space.get("name", f"{changed.data.get('name', 'study')}_space"))
    found: SearchSpace | ConfigError
    try:
        found = space_of(YamlDocument("space", adopted(space, folder), {}), name)
    except ConfigError as error:
        found = error
    named = changed.with_value(("space",), name)
    return check_study(YamlDocument(named.name, named.data, changed.lines), folder, problems, found)


def with_first_teacher(document: YamlDocument) -> YamlDocument:
    """Return a study's document with `teachers: {NAME: ..., ...}` as `teacher`, `teacher_name` and `further_teachers`.

    Raises ConfigError where it is no mapping, or is stated together with `teacher`.
    """
    teachers = document.data.get("teachers")
    if teachers is None:
        return document
    if "teacher" in document.data or not isinstance(teachers, dict) or not teachers:
        what = "are a mapping of names to teachers, in the place of `teacher`"
        raise ConfigError(document.problem("teachers", what, "teachers: {NAME: {type: ...}, ...}"))
    (first, teacher), *others = teachers.items()
    rest = {key: value for key, value in document.data.items() if key != "teachers"}
    further = {"further_teachers": dict(others)} if others else {}

    def moved(path: KeyPath) -> KeyPath:
        if path[:1] != ("teachers",):
            return path
        return ("teacher", *path[2:]) if path[1:2] == (first,) else ("further_teachers", *path[1:])

    lines = {moved(path): line for path, line in document.lines.items()}
    return YamlDocument(document.name, {**rest, "teacher": teacher, "teacher_name": first, **further}, lines)


def own_study(document: YamlDocument, folder: Path) -> YamlDocument:
    """Return a document of this user's own with its plug-ins, which lie relative to `folder` and may run, resolved."""
    return replace(document, data=adopted(document.data, folder))


def study_file(path: Path) -> Path:
    """Return the YAML file of the study at `path`. Raises ConfigError where there is none, naming what is near."""
    if path.is_dir():
        if not (path / STUDY_FILE).exists():
            how = command_line("kdnas", "init", path)
            raise ConfigError(Problem(str(path), f"the folder holds no {STUDY_FILE}; `{how}` writes one"))
        return path / STUDY_FILE
    if not path.exists():
        known = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        siblings = [name for name in known if name != path.name]  # which a link that leads nowhere has
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(Problem(str(path), f"there is no such folder or file{hint}"))
    return path


def apply_overrides(document: YamlDocument, overrides: Sequence[str]) -> tuple[YamlDocument, list[Problem]]:
    """Return the document with `key.sub=value` overrides applied, and what is wrong with those that cannot be.

    A value is read as YAML. List items go by index: `distillation.losses.0.weight=1`.
    """
    problems = []
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not all(key.strip().split(".")):
            problems.append(Problem(f"--set {text}", "is not key=value, such as training.epochs=10"))
            continue
        try:
            document = _override(document, key.strip(), parse_value(value))
        except ConfigError as error:
            problems += [Problem(f"--set {text}", problem.what) for problem in error.problems]
        except LookupError as error:
            problems.append(Problem(f"--set {text}", str(error.args[0])))
    return document, problems


def _override(document: YamlDocument, key: str, value: Any) -> YamlDocument:
    path = _key_path(document.data, key)
    if len(path) > 1 and path[0] in _MEMBER_SECTIONS and isinstance(document.data.get(str(path[0])), str):
        # `sampler: tpe` and `--set sampler.seed=1`: a bare name is short for a section with a type.
        line = document.line_of(path[:1])
        document = document.with_value(path[:1], {"type": document.data[str(path[0])]})
        document = YamlDocument(document.name, document.data, {**document.lines, path[:1]: line})
    return document.with_value(path, value)


def _key_path(data: Any, dotted: str) -> KeyPath:
    """Return the key path that `dotted` spells; an existing key may hold dots itself, as those of `tune` do."""
    parts = dotted.split(".")
    if parts[0] == "tune" and len(parts) > 2:
        tail = parts[-1:] if parts[-1] in ("low", "high", "log") else []
        return ("tune", ".".join(parts[1 : len(parts) - len(tail)]), *tail)
    path: list[str | int] = []
    for part in parts:
        step = int(part) if isinstance(data, list) and part.isdecimal() else part
        path.append(step)
        try:
            data = data[step]
        except (LookupError, TypeError):
            data = None
    return tuple(path)


def check_study(
    document: YamlDocument, folder: Path, problems: list[Problem], space: SearchSpace | ConfigError | None = None
) -> LoadedStudy:
    """Return the study that `document` spells, over `space`, which may be what is wrong with it, or the one it names.

    Raises ConfigError with `problems` and everything else that is wrong.
    """
    present = with_the_tasks_score(in_present_words(document.data))
    document = YamlDocument(document.name, present, document.lines)
    found: list[Problem] = []
    config: StudyConfig | None = None
    try:
        config = StudyConfig.model_validate(document.data)
    except pydantic.ValidationError as error:
        found += validation_problems(error, for_task(StudyConfig, task_named(document.data)))
    found += [*member_problems(document.data), *quantity_problems(document.data)]
    space_problems: list[Problem] = []
    if space is None:
        space, space_problems = _space(document.data, folder)
    elif isinstance(space, ConfigError):
        space_problems, space = [*space.problems], None
    found += _problems_between(config or _sound_part(document.data), space, [problem.where for problem in found])
    # What stands in the space's own file carries its own file and line, and comes last.
    here = [problem for problem in space_problems if problem.where.partition(".")[0] == "space"]
    found += here
    elsewhere = [problem for problem in space_problems if problem not in here]
    located = [*problems, *document.in_order(found), *elsewhere]
    if located or config is None or space is None:
        raise ConfigError(located)
    return LoadedStudy(config, folder, space)


_STARTS = ("evaluator.type", "start", "rungs", "final.start")
_FIDELITY = ("training.epochs", "training.data_fraction", "training.resolution_fraction")


def _problems_between(config: StudyConfig, space: SearchSpace | None, unsound: Sequence[str]) -> list[Problem]:
    """Return what is wrong between the sections of a study, as far as no key that is `unsound` has a part in it."""

    def sound(*keys: str) -> bool:
        return not any(
            f"{key}.".startswith(f"{where}.") or f"{where}.".startswith(f"{key}.") for key in keys for where in unsound
        )

    problems = []
    if config.tune and sound("distillation.losses"):
        from kdnas.study.tuning import tunable_problems

        problems += tunable_problems(config)
    if sound(*_STARTS, *_FIDELITY):
        problems += rung_problems(config)
    if sound("distillation", "teacher", "teacher_name", "further_teachers"):
        problems += teacher_problems(config)
    if space is not None and sound(*_STARTS):
        problems += _family_problems(config, space)
    if space is not None and space.family and sound("task", "data"):
        problems += _task_problems(config, space)
    if space is not None and space.family and sound(*_STARTS, "supernet", "teacher.type", "teacher.family"):
        problems += start_problems(config, space)
    if space is not None and space.family and sound("costs"):
        problems += table_problems(config, space)
    if space is not None and space.family and sound("sampler", "evaluator.type"):
        problems += library_problems(config, space)
    return problems


def _sound_part(data: Mapping[str, Any]) -> StudyConfig:
    """Return the study without the keys at which its schema complains: their defaults stand in for them."""
    needed = {"name": "unnamed", "space": "unnamed"}
    part = dict(data)
    while True:
        try:
            return StudyConfig.model_validate({**needed, **part})
        except pydantic.ValidationError as error:
            # Problems of the last rung are found under `training` as well, where nothing of it may stand.
            stated = [item["loc"] for item in error.errors() if item["loc"] and item["loc"][0] in part]
            part = _without(part, stated[0]) if stated else {}


def _without(value: Any, path: KeyPath) -> Any:
    """Return `value` without the key at `path`, or without the section or list around it that cannot do without."""
    if not path or not isinstance(value, dict) or path[0] not in value:
        return None
    inner = _without(value[path[0]], path[1:])
    rest = {key: part for key, part in value.items() if key != path[0]}
    return rest if inner is None else {**rest, path[0]: inner}


def _family_problems(config: StudyConfig, space: SearchSpace) -> list[Problem]:
    """Return whether the evaluator builds students and the space does not state of which family."""
    name = config.evaluator.type
    if space.family or "family" not in getattr(registry_of("evaluators").get(name), "needs", ()):
        return []
    what = f"the space {space.name} names no student family, and the evaluator {name} builds students"
    return [Problem("space", what, "a space with `family:`")]


def _task_problems(config: StudyConfig, space: SearchSpace) -> list[Problem]:
    """Return whether students of the space cannot do the study's kind of work."""
    if config.task is None and config.data is None:
        return []
    known, task = registry_of("students").get(space.family).tasks, task_kind(config.task, config.data)
    if not known or task in known:
        return []
    what = f"students of {space.family} are for {', '.join(known)}, the study is one of {task}"
    return [Problem("space", what, "a space of another family: `kdnas list spaces`")]


def _space(data: Mapping[str, Any], folder: Path) -> tuple[SearchSpace | None, list[Problem]]:
    name = data.get("space")
    if isinstance(name, dict):
        return derived_space(name, tuple(dict.fromkeys([str(data.get("teacher_name", "teacher")), "teacher"])))
    if not isinstance(name, str):
        return None, []  # the schema has reported it
    try:
        return load_space(name, folder), []
    except ConfigError as error:
        return None, [
            problem
            if ":" in problem.where
            else Problem("space", f"{problem.where}: {problem.what}".lstrip(": "), problem.allowed)
            for problem in error.problems
        ]
