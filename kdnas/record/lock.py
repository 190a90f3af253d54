"""study.lock.yaml: exactly what a run is, written before its first trial and read back whole.

Resuming compares with it what gives a score its meaning (data, teacher, space, objectives, training, seed); budget,
sampler, workers and the final evaluation may change.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from kdnas.core.answers import what_differs
from kdnas.core.arch import Scalar
from kdnas.core.measurement import Calibration
from kdnas.core.objective import Quantity
from kdnas.core.pick import Standard
from kdnas.core.space import Choice, Condition, SearchSpace
from kdnas.core.task import TaskSpec, image_classification
from kdnas.core.words import printable
from kdnas.errors import Problem, RunFolderError
from kdnas.machine import processor_name
from kdnas.plain_yaml import plain_of
from kdnas.plugins import code_fingerprints, shortened
from kdnas.record.run_folder import LOCK_FILE, refuse_links, write_text
from kdnas.regular import regular
from kdnas.study.config import DERIVED, DISTIL, StudyConfig
from kdnas.training.recipe import NUMERICS, numerics_of
from kdnas.trust import signature_line, vouch_for_signed

_HEADER = "# Written by kdnas: exactly what this run is. Resuming compares the study with it.\n"
_IDENTITY_SECTIONS = (
    "name",
    "seed",
    "task",
    "evaluator",
    "start",
    "data",
    "teacher",
    "further_teachers",
    "objectives",
    "constraints",
    "costs",
    "training",
    "distillation",
    "tune",
)
_SHOWN = 12
_STATISTICS = ("channel_mean", "channel_std")
_OF_IMAGES = ("input_shape", "samples")
"""The words of records of data from when they were all of images."""


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
        **({"options": dict(space.options)} if space.options else {}),
    }


def recorded_space(name: str, record: Mapping[str, Any]) -> SearchSpace:
    """Return the space that `space_record` recorded. Raises ValueError where the record is damaged."""
    try:
        space = SearchSpace(
            name=name,
            family=record["family"],
            choices=tuple(Choice(choice, tuple(values)) for choice, values in record["choices"].items()),
            conditions=tuple(Condition(c["choice"], c["when"], tuple(c["in"])) for c in record["conditions"]),
            fixed=dict(record["fixed"]),
            options=dict(record.get("options", {})),
        )
    except KeyError as error:
        raise ValueError(f"the record of the search space has no {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the record of the search space is damaged: {error}") from error
    domains = [*(choice.values for choice in space.choices), *(condition.values for condition in space.conditions)]
    stated = [value for values in (*domains, tuple(space.fixed.values())) for value in values]
    if wrong := [value for value in stated if not isinstance(value, Scalar)]:
        raise ValueError(f"the record of the search space is damaged: {wrong[0]!r} is no value of a choice")
    return space


@dataclass(frozen=True)
class TeacherReport:
    """The teacher, measured before the search on the same splits and device."""

    name: str
    score: float
    test_score: float | None
    values: Mapping[str, float]
    """macs, params, latency_ms, ... as for a student."""
    notes: tuple[str, ...] = ()
    outputs: str = "logits"
    """What its network gives: logits, or probabilities, of which students learn the logarithm."""

    def standard(self, score: Quantity) -> Standard:
        """Return what bounds may speak of, `score` being what the task is scored by."""
        return Standard({score.name: self.score, **self.values})


@dataclass(frozen=True)
class DataDescription:
    """The data of a run. Where the evaluator trains nothing itself it is a name alone."""

    name: str = ""
    class_names: tuple[str, ...] = ()
    task: TaskSpec | None = None
    """What its samples are, and what is asked of a network."""
    training_samples: int | None = None
    validation_samples: int | None = None
    test_samples: int | None = None
    statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The statistics of the training samples that the task's entrance needs, by name."""
    notes: tuple[str, ...] = ()
    """What the user should know of them: what was converted, left out, occurs twice, or is scarce."""
    validation_stated: bool = False
    """Whether the data name their validation samples, so that none were drawn from the training samples."""

    @property
    def samples(self) -> str:
        """What its task calls samples, in the plural."""
        return "samples" if self.task is None else self.task.samples


@dataclass(frozen=True)
class SupernetRecord:
    """The supernet that a run trained before its first trial; its weights and its shrinking are in RUN/supernet/."""

    fingerprint: str
    """Of the file of its weights."""
    epochs: int
    """Its budget, in epochs of the largest student on `data_fraction` of the training split."""
    data_fraction: float
    train_seconds: float
    inherited: float | None = None
    """The share of the largest student's parameters that began as the teacher's; None where none was asked to."""

    @property
    def amount(self) -> float:
        """Its budget as that of a fidelity: epochs x data fraction."""
        return self.epochs * self.data_fraction


@dataclass(frozen=True)
class Machine:
    """A machine and its installed packages."""

    python: str = ""
    system: str = ""
    processor: str = ""
    cores: int | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What an evaluator finds out once a run."""

    worst: float
    """The score that is worth nothing, such as that of guessing."""
    data: DataDescription
    teacher: TeacherReport | None = None
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """By measured cost."""
    further_teachers: Mapping[str, TeacherReport] = field(default_factory=dict)
    """Those after the first, by name."""
    chances: Mapping[str, float] = field(default_factory=dict)
    """What guessing has of the objectives that are known once a student is trained, in addition to its score."""


def _read_space(record: Any) -> SearchSpace:
    if not isinstance(record, Mapping):
        raise ValueError("Input should be the record of a search space")
    return recorded_space(str(record.get("name", "")), record)


@dataclass(frozen=True)
class Lock:
    """What a run is, every default resolved."""

    config: StudyConfig
    space: Annotated[SearchSpace, PlainValidator(_read_space), PlainSerializer(space_record)]
    fingerprints: Mapping[str, str]
    """Hashes of what its scores rest on: data, teacher, table."""
    quantities: tuple[Quantity, ...]
    """Every quantity that its students have, the score first."""
    reference_point: Mapping[str, float]
    """By objective name, in the objective's own unit and direction; every hypervolume of the run uses it."""
    teacher: TeacherReport | None
    data: DataDescription
    calibrations: Mapping[str, Any] = field(default_factory=dict)
    """What was measured once, by measured cost, as it is written: to read it takes the costs' own code."""
    teacher_answers: tuple[float, ...] = ()
    """A sketch of what the teacher answers to a few fixed samples (`kdnas.core.answers`); empty in runs of old."""
    device: str = ""
    machine: Machine = Machine()
    """Where the run began."""
    resumed_on: tuple[Machine, ...] = ()
    """Every further machine that it went on on."""
    supernet: SupernetRecord | None = None
    """None where it has none, or none yet."""
    further_teachers: Mapping[str, TeacherReport] = field(default_factory=dict)
    """Those after the first, by name."""


def written_calibrations(found: Mapping[str, Calibration]) -> dict[str, Any]:
    """Return calibrations as a lock file holds them."""
    return {
        name: TypeAdapter(type(calibration)).dump_python(calibration, mode="json", exclude_none=True)
        for name, calibration in found.items()
    }


def read_calibrations(lock: Lock, folder: Path) -> dict[str, Calibration]:
    """Return the calibrations in the lock file of `folder`. Raises RunFolderError where they are damaged."""
    from kdnas.costs import COSTS, MeasuredCost  # here, because it brings torch

    read = {}
    for name, plain in lock.calibrations.items():
        kind = COSTS.get(lock.config.cost(name).type)
        if issubclass(kind, MeasuredCost):
            with _naming_damage(folder / LOCK_FILE, "calibrations", name):
                read[name] = TypeAdapter(kind.calibration).validate_python(plain)
    return read


@functools.cache
def _adapter() -> TypeAdapter[Lock]:
    return TypeAdapter(Lock)


def write_lock(folder: Path, lock: Lock) -> None:
    """Write study.lock.yaml. Raises RunFolderError where the folder cannot be written."""
    plain = _adapter().dump_python(lock, mode="json")
    plain["data"] = {name: value for name, value in plain["data"].items() if value not in (None, [], {})}
    plain = {name: value for name, value in plain.items() if name == "teacher" or value not in (None, [])}
    for holder in (plain, plain["config"]):
        if not holder["further_teachers"]:
            del holder["further_teachers"]
    header = _HEADER + signature_line(_code_settings(plain))
    write_text(folder / LOCK_FILE, header + yaml.safe_dump(plain, sort_keys=False, width=120))


def read_lock(folder: Path) -> Lock:
    """Return the content of study.lock.yaml in `folder`. Raises RunFolderError when it is missing or a key is damaged.

    Lock files of earlier versions are read as well.
    """
    plain, path = _plain(folder), folder / LOCK_FILE
    with _naming_damage(path):
        return _adapter().validate_python(_of_today(plain))


@contextmanager
def _naming_damage(path: Path, *inside: str) -> Iterator[None]:
    """Turn what is wrong with the lock file at `path`, or `inside` it, into a RunFolderError that names each key."""
    try:
        yield
    except pydantic.ValidationError as error:
        problems = [
            Problem(".".join(map(str, (*inside, *one["loc"]))), one["msg"].removeprefix("Value error, "))
            for one in error.errors()[:_SHOWN]
        ]
        what = Problem(str(path), "is damaged, or no lock file of a kdnas run")
        raise RunFolderError([what, *problems]) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the plain configuration in the lock file of `folder`. Raises RunFolderError."""
    config = _plain(folder).get("config")
    if not isinstance(config, dict):
        raise RunFolderError(f"{folder / LOCK_FILE} is damaged: its config is no mapping")
    return config


def read_code_settings(folder: Path) -> dict[str, Any]:
    """Return the plain settings in the lock file of `folder` that may name code; none of that is read.

    Raises RunFolderError where the file is missing or damaged.
    """
    return _code_settings(_plain(folder))


def _code_settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a plain lock that may name code: the study's, and its space's family."""
    space = _section(plain, "space") or _section(_section(plain, "identity"), "space")
    return {**_section(plain, "config"), **({"family": space["family"]} if "family" in space else {})}


def _section(plain: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of plain data, empty where there is none."""
    inner = plain.get(name)
    return inner if isinstance(inner, Mapping) else {}


def _plain(folder: Path) -> dict[str, Any]:
    """Return the content of the lock file as YAML has it. Raises RunFolderError.

    Plug-ins that it names may run from now on where this user signed it or trusts them.
    """
    path = folder / LOCK_FILE
    refuse_links(folder)
    try:
        text = regular(path).read_text(encoding="utf-8")
        plain = plain_of(text)
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is not a kdnas run: it has no {LOCK_FILE}") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(plain, dict):
        raise RunFolderError(f"{path} is not a lock file of a kdnas run, or it is damaged")
    vouch_for_signed(path, text, _code_settings(plain))
    return plain


def _of_today(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain lock of any version as it is written now; what is damaged stays as it is."""
    lock, identity = dict(plain), _section(plain, "identity")  # of versions that wrote every section twice
    for name in ("space", "fingerprints"):
        if name in identity:
            lock.setdefault(name, identity[name])
    if isinstance(lock.get("fingerprints"), Mapping):
        lock["fingerprints"] = {name: value for name, value in lock["fingerprints"].items() if name != "space"}
    if supernet := _section(plain, "prepared").get("supernet"):
        lock.setdefault("supernet", supernet)
    if isinstance(lock.get("space"), Mapping):
        stated = _section(plain, "config").get("space", "")
        lock["space"] = {**lock["space"], "name": DERIVED if isinstance(stated, Mapping) else Path(str(stated)).stem}
    if data := _section(plain, "data"):
        renamed = {name.replace("_images", "_samples"): value for name, value in data.items()}
        lock["data"] = of_todays_task(renamed)
    if teacher := _section(plain, "teacher"):
        lock["teacher"] = scored(teacher)
        if isinstance(teacher.get("notes"), list):
            lock["teacher"]["notes"] = [printable(str(note)) for note in teacher["notes"]]
    return lock


def of_todays_task(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain record with the task and the statistics of its data: once they were a shape and channels' numbers.

    What is damaged stays as it is, and is reported by whoever reads it.
    """
    rest = {name: value for name, value in plain.items() if name not in (*_OF_IMAGES, *_STATISTICS)}
    shape = plain.get("input_shape")
    if "task" in plain or not shape:
        return rest if "task" in plain else dict(plain)
    names = plain.get("class_names")
    if not isinstance(names, list) or not isinstance(shape, list) or len(shape) != 3:
        return dict(plain)
    spec = image_classification((shape[0], shape[1], shape[2]), len(names))
    task = TypeAdapter(TaskSpec).dump_python(spec, mode="json")
    statistics = {name: plain[name] for name in _STATISTICS if name in plain}
    return {**rest, "task": task, "statistics": statistics}


def scored(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain record with its scores by the names of today: once every score was an accuracy."""
    old = {"accuracy": "score", "test_accuracy": "test_score"}
    return {old.get(name, name): value for name, value in plain.items()}


def this_machine() -> Machine:
    """Return what this machine and its installed packages are."""
    packages = {}
    for name in ("kdnas", "torch", "optuna", "nni", "numpy", "fvcore"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    return Machine(platform.python_version(), platform.platform(), processor_name(), os.cpu_count(), packages)


# -- what must not change when a run resumes -------------------------------------------------------------------------


def refuse_another_study(
    folder: Path,
    lock: Lock,
    config: StudyConfig,
    space: SearchSpace | None = None,
    fingerprints: Mapping[str, str] | None = None,
    device: str | None = None,
) -> None:
    """Raise RunFolderError showing every difference where the study is not that of the run in `folder`.

    Without `space` and `fingerprints`, which are known once everything is open, it is compared as far as it is stated.
    Measurements of different devices are not comparable: `device` is stated where that
    counts.
    """
    was = lock.config.model_copy(update={"training": numerics_of(lock.config.training, config.training)})
    of_old = {"evaluator": {"type": DISTIL}, "start": "random"}  # of old there was no other
    before = {**of_old, **_identity(was, lock.space, stated=True)}
    after = _identity(config, space or lock.space)
    fingerprints = lock.fingerprints if fingerprints is None else hashes(config, space or lock.space, fingerprints)
    if device is not None:
        before, after = {**before, "device": lock.device}, {**after, "device": device}
    changed = _differences(shortened(before), shortened(after))
    sections = {difference.where.partition(".")[0] for difference in changed}
    changed += [
        Problem(what, _other_content(config, what))
        for what in sorted({*lock.fingerprints, *fingerprints} - sections)
        if lock.fingerprints.get(what) != fingerprints.get(what)
    ]
    if not changed:
        return
    more = f", and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    what = (
        f"this run was started with another study, so their scores cannot be compared; changed{more} (run -> study); "
        "choose another --out or restore the study"
    )
    raise RunFolderError([Problem(str(folder), what), *changed[:_SHOWN]])


def _other_content(config: StudyConfig, what: str) -> str:
    """Return why `what` has another hash than in the run; of a teacher trained by kdnas, also where its weights are."""
    teacher = {"teacher": config.teacher, **config.further_teachers}.get(what.rpartition(".")[2])
    if teacher is None or teacher.type != "student":
        return "its content is not what it was"
    return (
        "the network that was trained here for this run is not the one found in the cache or trained now; point "
        "KDNAS_CACHE to the cache of that time (runs of earlier versions hold no copy of their teacher)"
    )


def _identity(config: StudyConfig, space: SearchSpace, *, stated: bool = False) -> dict[str, Any]:
    """Return, plain, what gives a score its meaning; only what `config` was given where that is to be `stated`.

    A lock file states every setting that there was: one that it does not state may have meant something else.
    """
    resolved = config.model_dump(mode="json", exclude_unset=stated)
    identity = {section: resolved[section] for section in _IDENTITY_SECTIONS if section in resolved}
    if not identity.get("further_teachers"):  # there being none, runs of earlier versions have no entry for them
        identity.pop("further_teachers", None)
    if config.rungs:
        identity["rungs"] = [fidelity.as_dict() for fidelity in config.fidelities]
    if config.shares_weights and "supernet" in resolved:
        identity["supernet"] = resolved["supernet"]
    if (learnt := resolved.get("final", {}).get("distillation")) is not None:  # retrainings by another do not compare
        identity["final.distillation"] = learnt
    return {**identity, "space": space_record(space)}


def hashes(config: StudyConfig, space: SearchSpace, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes of what scores rest on: `fingerprints`, and by file the code of the plug-ins that are named."""
    resolved = config.model_dump(mode="json")
    named = {section: resolved[section] for section in (*_IDENTITY_SECTIONS, "rungs")}
    return {**fingerprints, **code_fingerprints({**named, "family": space.family})}


def refuse_other_answers(folder: Path, lock: Lock, now: Sequence[float]) -> None:
    """Raise RunFolderError where the teacher of equal files answers otherwise than when `folder` was started.

    `now` is its sketch of today; a lock file of earlier versions has none, and is compared with nothing.
    """
    what = what_differs(lock.teacher_answers, now)
    if not what:
        return
    was, today = lock.machine.packages, this_machine().packages
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


def recorded_numerics(locked: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain training `locked`, with `current`'s numerics where it was made before they were recorded."""
    decided = {name: current[name] for name in NUMERICS if name in current and locked.get(name, "auto") == "auto"}
    return {**locked, **decided}


def fingerprint(record: Any) -> str:
    """Return sixteen hexadecimal digits of the SHA-256 of a plain record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:16]
