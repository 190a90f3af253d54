"""Measuring students on a target: latency, peak memory and energy of several of them, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.measurement import Measurement, Price
from kdnas.core.task import TaskSpec, image_classification
from kdnas.errors import ConfigError, InputError, Problem, RunError
from kdnas.nn.timing import Run, calmest, median_and_spread, reference_network
from kdnas.outlets import Notify, silent
from kdnas.record.front import front
from kdnas.record.front import pick as pick_member
from kdnas.record.run_folder import LOCK_FILE
from kdnas.record.storage import load_run
from kdnas.students import STUDENTS, family_for, stated_arch
from kdnas.targets import TARGETS, EnergyCounter, Missing, Target, given
from kdnas.workshop.afterwards import family_of
from kdnas.workshop.opening import cache_dir
from kdnas.workshop.opening import data_root as stated_root
from kdnas.workshop.stock_folder import CONFIG, HUGGINGFACE, StockFolder

MAX_DRIFT = 0.5
_WARMUP = 5
_ENERGY_ROUNDS = 3
_ENERGY_WINDOW_S = 1.0
"""Long compared with the period in which counters are renewed (RAPL 1 ms, NVML up to 0.1 s)."""


class Maker(Protocol):
    """What builds and prices a student: its family, or the folder that it lies in."""

    @property
    def task(self) -> TaskSpec:
        """What the student is given and what it answers."""

    def build(self, arch: Arch) -> nn.Module:
        """Return the student."""

    def price(self, arch: Arch) -> Price:
        """Return what it costs."""


@dataclass(frozen=True)
class Subject:
    """A student to measure. `onnx` is its ONNX file where it came with one; `onnx_alone` where with nothing else."""

    source: str
    arch: Arch
    family: Maker
    onnx: Path | None = None
    onnx_alone: bool = False

    @property
    def task(self) -> TaskSpec:
        """What it is given and what it answers."""
        return self.family.task

    def network(self, target: Target) -> nn.Module | Path:
        """Return what `target` is to run: the ONNX file where it takes one, else the network, built anew.

        Raises ConfigError where the student is an ONNX file alone and the target takes none.
        """
        if self.onnx is not None and target.takes_onnx:
            return self.onnx
        if self.onnx_alone:
            what = f"is an ONNX file, and the target ({target.where}) runs PyTorch networks"
            raise ConfigError(
                Problem(self.source, what, "--target onnxruntime, or the student's folder or student.json")
            )
        with torch.random.fork_rng(devices=[]):
            return self.family.build(self.arch)


@dataclass(frozen=True)
class Measured:
    """What was measured of one student on one target. Energy is that of one pass, over the whole batch."""

    subject: Subject
    macs: int
    params: int
    latency_ms: Measurement
    peak_memory_bytes: Measurement | Missing
    energy_mj: Measurement | Missing

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form: a quantity that could not be measured is null, with its `_missing` reason."""
        plain: dict[str, Any] = {
            "student": self.subject.arch.arch_id,
            "source": self.subject.source,
            "macs": self.macs,
            "params": self.params,
        }
        for name in ("latency_ms", "peak_memory_bytes", "energy_mj"):
            found = getattr(self, name)
            plain[name] = None if isinstance(found, Missing) else found.as_dict()
            if isinstance(found, Missing):
                plain[f"{name}_missing"] = found.reason
        return plain


@dataclass(frozen=True)
class TargetReport:
    """All students on one target: `drift` is how much the reference network changed meanwhile."""

    target: str
    where: str
    reference_ms: float
    drift: float
    students: tuple[Measured, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form."""
        own = {name: value for name, value in vars(self).items() if name != "students"}
        return {**own, "students": [student.as_dict() for student in self.students]}


def subjects(path: Path, pick: str | None = None, data_root: Path | None = None) -> list[Subject]:
    """Return the students at `path`: the front of a run folder, or `pick` of it, or the one of an export.

    An export is a folder with student.json or student.onnx, or one of these files; or a folder of Hugging Face
    transformers with a text classifier or a language model, which stands for a student that was cut out of its teacher.
    Where those of a run are cut out of its teacher, that is opened, below `data_root`. Raises InputError where it is
    none of these, or damaged, or an export of a cut student without such a folder.
    """
    if (path / LOCK_FILE).is_file():
        return _of_run(path, pick, data_root)
    if pick is not None:
        raise ConfigError(Problem("--pick", f"{path} is not a run folder: there is nothing to pick from"))
    files = [path / name for name in ("student.json", "student.onnx")] if path.is_dir() else [path]
    json_file = next((file for file in files if file.suffix == ".json" and file.is_file()), None)
    onnx_file = next((file for file in files if file.suffix == ".onnx" and file.is_file()), None)
    if json_file is None and onnx_file is None and (path / CONFIG).is_file():
        stock = StockFolder(path)
        return [Subject(str(path), stock.arch, stock)]
    if json_file is None and onnx_file is None:
        what = f"is no run folder ({LOCK_FILE}) and no exported student (student.json, student.onnx, {CONFIG})"
        raise ConfigError(Problem(str(path), what if path.exists() else "there is no such folder or file"))
    stated = _stated_in_json(json_file) if json_file is not None else _stated_in_onnx(onnx_file or path)
    arch, task = stated
    if STUDENTS.get(arch.family).derived:
        stock_folder = (path if path.is_dir() else path.parent) / HUGGINGFACE
        if not (stock_folder / CONFIG).is_file():
            what = "is cut out of a teacher, which an export does not hold"
            raise ConfigError(Problem(str(path), what, "its run folder"))
        return [Subject(str(path), arch, StockFolder(stock_folder, task), onnx=onnx_file)]
    family = family_for(arch.family, task)
    return [Subject(str(path), arch, family, onnx=onnx_file, onnx_alone=json_file is None)]


def targets(name: str, options: Mapping[str, Any]) -> list[Target]:
    """Return target `name` under `options`, and under each of its own variants of what they leave open.

    Raises ConfigError where it does not exist, does not take an option, or cannot run on this machine.
    """
    known = TARGETS.options(name).model_fields
    problems = [
        Problem(f"--{key.replace('_', '-')}", f"target {name} has no such option")
        for key in options
        if key not in known
    ]
    if problems:
        raise ConfigError(problems)
    variants = [{**variant, **options} for variant in TARGETS.get(name).variants]
    unique = [variant for index, variant in enumerate(variants) if variant not in variants[:index]]
    return [TARGETS.build(name, **variant) for variant in unique]


def measure(
    students: Sequence[Subject],
    name: str,
    target: Target,
    *,
    repeats: int = 50,
    max_drift: float = MAX_DRIFT,
    notify: Notify = silent,
) -> TargetReport:
    """Return what `students` take on `target`, which is called `name`: measured in turn, `repeats` times each.

    Raises RunError where the machine is so unsteady that the reference network's time changed by more than the share
    `max_drift` during the measurement, three times over.
    """
    notify(f"measuring {len(students)} on {target.where}")
    networks = [student.network(target) for student in students]
    with target.ready():
        runs = [
            target.run(network, given(student.task, target.batch_size))
            for network, student in zip(networks, students, strict=True)
        ]
        reference, image = reference_network()
        timing = calmest(runs, target.run(reference, (image,)), rounds=repeats, warmup=_WARMUP, clock=target.clock)
        if timing.drift > max_drift:
            raise RunError(
                f"{target.where}: this machine is too unsteady to measure on: the reference network's time changed by "
                f"{timing.drift:.0%} meanwhile (at most {max_drift:.0%}); try again when the machine is less busy"
            )
        energies = _energies(runs, target)
        memories = [
            target.peak_memory_bytes(network, given(student.task, target.batch_size))
            for network, student in zip(networks, students, strict=True)
        ]
    measured = []
    for index, (student, memory, energy) in enumerate(zip(students, memories, energies, strict=True)):
        price = student.family.price(student.arch)
        median, spread = median_and_spread(timing.ratios(index))
        scale = timing.reference_ms
        latency = Measurement(median * scale, spread * scale, repeats, target.where)
        measured.append(Measured(student, price.macs, price.params, latency, memory, energy))
    return TargetReport(name, target.where, timing.reference_ms, timing.drift, tuple(measured))


def _energies(runs: Sequence[Run], target: Target) -> list[Measurement | Missing]:
    """Return the energy of one pass of each of `runs`, in mJ: windows of back-to-back passes, in turn."""
    counter = target.energy_counter()
    if isinstance(counter, Missing):
        return [counter] * len(runs)
    rounds = [[_energy_mj(run, counter) for run in runs] for _ in range(_ENERGY_ROUNDS)]
    found: list[Measurement | Missing] = []
    for values in zip(*rounds, strict=True):
        median, spread = median_and_spread(values)
        found.append(Measurement(median, spread, _ENERGY_ROUNDS, f"{target.where}; {counter.what}"))
    return found


def _energy_mj(run: Run, counter: EnergyCounter) -> float:
    passes, until, before = 0, time.perf_counter() + _ENERGY_WINDOW_S, counter.read()
    while time.perf_counter() < until:
        run()
        passes += 1
    return counter.spent_mj(before, counter.read()) / passes


def _of_run(folder: Path, pick: str | None, data_root: Path | None) -> list[Subject]:
    run = load_run(folder)
    members = [pick_member(run, pick)] if pick is not None else list(front(run))
    if not members:
        raise ConfigError(Problem(str(folder), "has no front yet: no student was scored that meets every constraint"))
    family = family_of(run, data_root=stated_root(data_root), cache=cache_dir())
    return [Subject(str(folder), member.trial.arch, family) for member in members]


def _stated_in_json(file: Path) -> tuple[Arch, TaskSpec]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != "kdnas-student":
            raise ValueError("its format is not kdnas-student")
        return _checked(record["arch"], record.get("task"), record["input"]["shape"], record["classes"])
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise ConfigError(Problem(str(file), f"is not a student that kdnas exported: {_reason(error)}")) from error


def _stated_in_onnx(file: Path) -> tuple[Arch, TaskSpec]:
    try:
        import onnx
    except ImportError:
        raise ConfigError(Problem(str(file), "needs onnx: pip install 'kdnas[onnx]'")) from None
    try:
        model = onnx.load(file, load_external_data=False)
        stated = {entry.key: entry.value for entry in model.metadata_props}
        shape = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim][1:]
        task, names = json.loads(stated.get("task", "null")), json.loads(stated["class_names"])
        return _checked(json.loads(stated["arch"]), task, shape, names)
    except Exception as error:  # onnx and protobuf raise types of their own on a damaged file
        raise ConfigError(Problem(str(file), f"is not a student that kdnas exported: {_reason(error)}")) from error


def _checked(arch: Any, task: Any, shape: Any, classes: Any) -> tuple[Arch, TaskSpec]:
    """Return the arch as its family spells it, and its task. Raises ValueError or InputError.

    Exports that state no task are of images of `shape`.
    """
    stated = Arch.from_json(arch)
    if task is not None:
        return stated_arch(stated.family, stated.choices), TypeAdapter(TaskSpec).validate_python(task)
    if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape) or not len(classes):
        raise ValueError("its input shape or its classes are missing")
    images = image_classification((shape[0], shape[1], shape[2]), len(classes))
    return stated_arch(stated.family, stated.choices), images


def _reason(error: Exception) -> str:
    text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
