"""The run folder: one study, one controller at a time, and study.lock.yaml that says exactly what is being run.

The lock file is written before the first trial. Resuming compares the `identity` of the study with it: what gives
a score its meaning (data, teacher, space, objectives, training, seed) must be equal; budget, sampler, workers and the
final evaluation may change.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import yaml

from kdnas import atomic
from kdnas.core.answers import what_differs
from kdnas.core.fidelity import Fidelity
from kdnas.core.space import Choice, Condition, SearchSpace
from kdnas.errors import Problem, RunFolderError
from kdnas.plugins import code_fingerprints, shortened
from kdnas.study.config import StudyConfig, SupernetConfig
from kdnas.training.recipe import NUMERICS
from kdnas.trust import signature_line, vouch_for_signed

LOCK_FILE = "study.lock.yaml"
_GUARD = ".controller"
_IDENTITY_SECTIONS = (
    "seed",
    "evaluator",
    "data",
    "teacher",
    "objectives",
    "constraints",
    "costs",
    "training",
    "distillation",
    "tune",
)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all. Raises RunFolderError naming the path."""
    try:
        atomic.write_text(path, text)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def controller_lock(folder: Path) -> Iterator[None]:
    """Hold the run folder, created where there is none, for one controller.

    The system frees it when the process dies. Where the work ends before a run was recorded, a folder made here is
    removed again. Raises RunFolderError when the folder cannot be made or written, is held by another controller, or
    holds something else than a run.
    """
    created = not folder.exists()
    try:
        if not created:
            _refuse_strangers(folder)  # before anything is written there
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be used as a run folder: {error.strerror or error}") from error
    with exclusively(folder / _GUARD, "kdnas search"):
        try:
            yield
        finally:
            if created and not (folder / LOCK_FILE).exists():  # while the lock still keeps others out
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def exclusively(guard: Path, command: str) -> Iterator[None]:
    """Hold the folder of the file `guard` for one process of `command`; the system frees it when that dies.

    Raises RunFolderError when another holds it or the file cannot be made.
    """
    try:
        file = guard.open("a")
    except OSError as error:
        raise RunFolderError(f"{guard.parent} cannot be written: {error.strerror or error}") from error
    with file:
        if not locked(file):
            raise RunFolderError(f"{guard.parent} is in use by another {command}")
        yield


def locked(file: IO[str], *, wait: bool = False) -> bool:
    """Lock the open `file` until it is closed; False where another process holds it and `wait` is not asked for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _refuse_strangers(folder: Path) -> None:
    stranger = next((p.name for p in folder.iterdir() if p.name != "checkpoints" and not p.name.startswith(".")), None)
    if stranger is not None and not (folder / LOCK_FILE).exists():
        raise RunFolderError(f"{folder} is not empty and not a kdnas run (it holds {stranger}); choose another --out")


def space_record(space: SearchSpace) -> dict[str, Any]:
    """Return the plain record of a space: what decides which archs it holds."""
    return {
        "family": space.family,
        "choices": {choice.name: list(choice.values) for choice in space.choices},
        "conditions": [
            {"choice": condition.choice, "when": condition.when, "in": list(condition.values)}
            for condition in space.conditions
        ],
        "fixed": dict(space.fixed),
    }


def recorded_space(name: str, record: Mapping[str, Any]) -> SearchSpace:
    """Return the space that `space_record` recorded. Raises RunFolderError where the record is damaged."""
    try:
        return SearchSpace(
            name=name,
            family=record["family"],
            choices=tuple(Choice(choice, tuple(values)) for choice, values in record["choices"].items()),
            conditions=tuple(Condition(c["choice"], c["when"], tuple(c["in"])) for c in record["conditions"]),
            fixed=dict(record["fixed"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"the search space in the run's lock file is damaged: {error!r}") from error


def identity(config: StudyConfig, space: SearchSpace, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Return what must not change when a run resumes. `fingerprints` are those of what the scores rest on.

    The code of plug-ins that have a part in the scores is hashed too, by file.
    """
    resolved = config.model_dump(mode="json")
    sections = {section: resolved[section] for section in _IDENTITY_SECTIONS}
    code = code_fingerprints({**sections, "rungs": resolved["rungs"], "family": space.family})
    return {
        "name": config.name,
        **sections,
        **({"rungs": [fidelity.as_dict() for fidelity in config.fidelities]} if config.rungs else {}),
        **({"supernet": resolved["supernet"]} if config.shares_weights else {}),
        "space": space_record(space),
        "fingerprints": {**fingerprints, **code, "space": fingerprint(space_record(space))},
    }


def fingerprint(record: Any) -> str:
    """Return sixteen hexadecimal digits of the SHA-256 of a plain record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_identity(
    folder: Path,
    locked: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    was: Mapping[str, Any] = MappingProxyType({}),
    now: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Raise RunFolderError showing every difference when the study is not the one `folder` was started with.

    `was` and `now` are the whole configurations: where the hash of data or teacher changed, they may tell why.
    """
    if "evaluator" in current:
        # What the first runs do not say, since there was nothing else.
        locked = {"evaluator": {"type": "scratch"}, **locked}
        if "rungs" in locked:
            locked["rungs"] = [Fidelity(**rung).as_dict() for rung in locked["rungs"]]
    if "supernet" in locked:  # earlier versions wrote the options of every shrinking policy
        locked = {**locked, "supernet": SupernetConfig(**locked["supernet"]).model_dump(mode="json")}
    if "training" in locked and "training" in current:
        locked = {**locked, "training": recorded_numerics(locked["training"], current["training"])}
    changed: list[Problem] = []
    for difference in _differences(shortened(locked), shortened(current)):
        section, _, what = difference.where.partition(".")
        if section != "fingerprints":
            changed.append(difference)
        elif what != "space":  # the record of the space is compared itself
            told = _differences({what: was.get(what)}, {what: now.get(what)})
            changed += told or [Problem(what, "its content is not what it was")]
    if not changed:
        return
    more = f", and {len(changed) - 12} more" if len(changed) > 12 else ""
    raise RunFolderError(
        [
            Problem(
                str(folder),
                f"this run was started with another study, so their scores cannot be compared; changed{more} "
                "(run -> study); choose another --out or restore the study",
            ),
            *changed[:12],
        ]
    )


def recorded_numerics(locked: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain training `locked`, with `current`'s numerics where it was made before they were recorded."""
    said = {name: current[name] for name in NUMERICS if name in current and locked.get(name, "auto") == "auto"}
    return {**locked, **said}


def check_answers(folder: Path, locked: Mapping[str, Any], now: Sequence[float]) -> None:
    """Raise RunFolderError where the teacher of equal files answers otherwise than when `folder` was started.

    `now` is its sketch of today; a lock file of earlier versions has none, and is compared with nothing.
    """
    what = what_differs(locked.get("teacher_answers") or (), now)
    if not what:
        return
    was, today = locked.get("machine", {}).get("packages", {}), machine()["packages"]
    others = [f"{name} {was[name]} -> {today[name]}" for name in today if name in was and was[name] != today[name]]
    upgraded = f" ({', '.join(others)})" if others else ""
    remedy = "scores cannot be compared: choose another --out or restore the teacher"
    raise RunFolderError(Problem(str(folder), f"the teacher of this run {what}{upgraded}; {remedy}"))


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Problem]:
    """Return every value that differs between nested plain data, by dotted key."""
    old, new = leaves(before), leaves(after)
    return [
        Problem(key, f"{old.get(key, '(absent)')} -> {new.get(key, '(absent)')}")
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested plain data by dotted key; lists of plain values and what is empty stay whole."""
    nested = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if nested else ()
    result: dict[str, Any] = {}
    for key, part in inner:
        result |= leaves(part, f"{prefix}.{key}" if prefix else str(key))
    return result or {prefix: value}


def write_lock(folder: Path, lock: Mapping[str, Any]) -> None:
    """Write study.lock.yaml."""
    header = "# Written by kdnas: exactly what this run is. Resuming compares `identity` with the study.\n"
    plain = json.loads(json.dumps(lock, default=str))
    header += signature_line(code_settings(plain)) if isinstance(plain.get("config"), dict) else ""
    write_text(folder / LOCK_FILE, header + yaml.safe_dump(plain, sort_keys=False, width=120))


def code_settings(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a lock file that may name code: the study's, and its space's family."""
    config, identity = lock.get("config"), lock.get("identity")
    space = identity.get("space") if isinstance(identity, Mapping) else None
    family = {"family": space["family"]} if isinstance(space, Mapping) and "family" in space else {}
    return {**(config if isinstance(config, Mapping) else {}), **family}


def read_lock(folder: Path) -> dict[str, Any]:
    """Return the content of study.lock.yaml. Raises RunFolderError when it is missing or damaged.

    Plug-ins that it names may run from now on where this user signed it or trusts them.
    """
    path = folder / LOCK_FILE
    try:
        text = path.read_text(encoding="utf-8")
        lock = yaml.safe_load(text)
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is not a kdnas run: it has no {LOCK_FILE}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunFolderError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(lock, dict) or not {"identity", "config", "teacher", "reference_point"} <= lock.keys():
        raise RunFolderError(f"{path} is not a lock file of a kdnas run, or it is damaged")
    vouch_for_signed(path, text, code_settings(lock))
    return lock


def machine() -> dict[str, Any]:
    """Return what this machine and its installed packages are, for the lock file."""
    packages = {}
    for name in ("kdnas", "torch", "optuna", "nni", "numpy", "fvcore"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": packages,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
