"""A run's block library: every block of the teacher at every size, distilled once, kept in RUN/blocks.json.

The file is written after each block, so that a stopped run goes on with the next; it is made anew where what it was
made of has changed: teacher, data, space, or the settings in `blocks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdnas.core.arch import Scalar
from kdnas.core.block_library import BlockLibrary, Entry, Solved
from kdnas.core.objective import parse_constraint
from kdnas.core.pick import PickError, against
from kdnas.core.seeds import derive_seed
from kdnas.core.words import counted, progress_bar
from kdnas.errors import ConfigError, Problem, RunFolderError, TeacherError
from kdnas.faults import reach
from kdnas.nn.block_distillation import BlockBench, held_from
from kdnas.record.records import RunRecord
from kdnas.record.run_folder import write_text
from kdnas.students._cut_choices import CutBlock
from kdnas.students.derived import Derived
from kdnas.study.config import BlocksConfig
from kdnas.training.numerics import computing
from kdnas.workshop.opening import Workshop
from kdnas.workshop.run_files import LIBRARY_FILE

"""Relative to the run folder."""
_MOST_FRAMES = 64
"""Settings of the choices that blocks share: each takes a library of its own."""
_TRIED = 16
"""Random students that show that costs add up."""


@dataclass(frozen=True)
class _Saved:
    """What a library file holds."""

    made_on: str
    """A hash of what the entries follow from."""
    seconds: float
    whole: bool
    """Whether every block's entries are there."""
    entries: tuple[Entry, ...]


def open_library(
    folder: Path, settings: BlocksConfig, workshop: Workshop, *, seed: int, notify: Callable[[str], None]
) -> BlockLibrary:
    """Return the block library of the run in `folder`: made now, or on from where an earlier call stopped.

    Raises ConfigError where the study's students are not made of blocks, or there are too few samples, and TeacherError
    where their costs do not add up, or a block cannot be run alone.
    """
    family = workshop.family
    if not isinstance(family, Derived):
        raise ConfigError(Problem("sampler", "a block library is one of students cut out of their teacher"))
    making = _Making(folder / LIBRARY_FILE, settings, workshop, family, seed, notify)
    with computing(workshop.sources.training, workshop.device):
        return making.library()


def saved_library(folder: Path) -> BlockLibrary:
    """Return the finished block library of a run. Raises RunFolderError where it has none, or a damaged one."""
    path = folder / LIBRARY_FILE
    if not path.is_file():
        what = "it has no block library: `kdnas search RUN --set sampler=blocks` makes one"
        raise RunFolderError(Problem(str(folder), what))
    saved = _read(path)
    if saved is None:
        raise RunFolderError(Problem(str(path), "it is damaged: remove it, and `kdnas search` makes it anew"))
    if not saved.whole:
        raise RunFolderError(Problem(str(path), "it is not finished yet: `kdnas search` goes on with it"))
    return BlockLibrary(saved.entries)


def solve(run: RunRecord, bounds: Sequence[str], *, count: int = 16) -> tuple[Solved, ...]:
    """Return the students that the run's block library predicts to lose least within `bounds`, the cheapest first.

    `bounds` are spelled as constraints: `macs<=10M`, or of the teacher's `macs<=30%`; the study's own hold as well. The
    students, each spelled by its active choices, are the best under up to `count` budgets of the first one's cost.
    Nothing is trained. Raises ConfigError where a bound is none that can be solved, or nobody is within them, and
    RunFolderError where there is no library.
    """
    library = saved_library(run.folder)
    stated, problems = [], []
    for text in bounds:
        try:
            bound = against(parse_constraint(text), run.standard, run.score)
        except (PickError, ValueError) as error:
            problems.append(Problem(text, str(error)))
            continue
        if bound.name not in library.costs:
            what = f"{bound.name} is no sum over blocks, so a library cannot predict it: search with it as a constraint"
            problems.append(Problem(text, what, " or ".join(library.costs)))
        stated.append(bound)
    if problems or not stated:
        raise ConfigError(problems or Problem("solve", "takes a bound", "such as 'macs<=30%'"))
    limits = tuple(bound for bound in run.limits if bound.name in library.costs)
    lead = stated[0].name
    front = library.front(lead, (*limits, *stated), count=count)
    if not front:
        least = library.solve(limits, least=lead)
        cheapest = "" if least is None else f": the least is {least.costs[lead]:,.0f} {lead}"
        raise ConfigError(Problem(bounds[0], f"no student is within {' and '.join(map(str, stated))}{cheapest}"))
    active = run.lock.space.active
    return tuple(
        dataclasses.replace(
            solved, assignment={n: v for n, v in active(solved.assignment).items() if n in library.choices}
        )
        for solved in front
    )


class _Making:
    """A library that is being made: block by block, at each setting of the choices that blocks share (a frame)."""

    def __init__(
        self,
        path: Path,
        settings: BlocksConfig,
        workshop: Workshop,
        family: Derived,
        seed: int,
        notify: Callable[[str], None],
    ):
        self._path, self._settings, self._workshop, self._family = path, settings, workshop, family
        self._seed, self._notify = seed, notify
        self._choices = family.choices
        self._blocks = self._choices.blocks
        self._frames = self._all_frames()
        self._entries: list[Entry] = []
        self._seconds = 0.0

    def _all_frames(self) -> list[dict[str, int]]:
        shared = {name: self._choices.values[name] for name in self._choices.shared}
        moving = [name for name, values in self._choices.values.items() if len(values) > 1 and name not in shared]
        several = {name: values for name, values in shared.items() if len(values) > 1}
        if not moving:
            what = (
                f"nothing that is searched ({', '.join(several)}) lies inside one block: there is no library of blocks"
            )
            raise ConfigError(
                Problem("space", what, "two options or more of depth, inner or heads, or another sampler")
            )
        count = math.prod(map(len, several.values()))
        if count > _MOST_FRAMES:
            what = (
                f"blocks share {', '.join(several)}, of {count:,} settings in all, and each takes a library of its own"
            )
            allowed = f"at most {_MOST_FRAMES}: `width: [1]`, fewer options of it, or a coarser granularity"
            raise ConfigError(Problem("space.width", what, allowed))
        return [dict(zip(shared, values, strict=True)) for values in itertools.product(*shared.values())]

    def library(self) -> BlockLibrary:
        """Return it, made as far as it is not there."""
        made_on = self._made_on()
        saved = _read(self._path)
        if saved is not None and saved.made_on == made_on:
            self._entries, self._seconds = list(saved.entries), saved.seconds
            if saved.whole:
                return BlockLibrary(self._entries)
        samples = min(self._settings.samples, len(self._workshop.train_indices))
        try:
            held_from(samples)
        except ValueError as error:
            raise ConfigError(Problem("blocks.samples", str(error), "8 or more training samples")) from None
        forms = sum(len(list(self._settings_of(block))) for block in self._blocks) * len(self._frames)
        self._notify(
            f"{'going on with' if self._entries else 'making'} the block library, once: "
            f"{counted(forms, 'setting')} of {counted(len(self._blocks), 'block')}, each fitted in closed form"
            + (f" and distilled for {counted(self._settings.epochs, 'epoch')}" if self._settings.epochs else "")
            + f" on {samples:,} {self._workshop.data.task.samples}"
        )
        inputs, _ = self._workshop.samples(samples)
        if self._workshop.data.task.candidates:
            inputs = tuple(taken.flatten(0, 1) for taken in inputs)  # blocks are fed one candidate at a time
        total = len(self._frames) * (len(self._blocks) + 1)
        for number, frame in enumerate(self._frames):
            self._make_frame(frame, inputs, made_on, number * (len(self._blocks) + 1), total)
        self._check_costs()
        self._write(made_on, whole=True)
        return BlockLibrary(self._entries)

    def _make_frame(
        self, frame: Mapping[str, int], inputs: tuple[Any, ...], made_on: str, done: int, total: int
    ) -> None:
        there = {entry.block for entry in self._entries if _of(frame).items() <= dict(entry.values).items()}
        if {"", *(block.name for block in self._blocks)} <= there:
            return
        began = time.perf_counter()
        arch = self._family.canonical(frame)
        opened = self._family.opened_up(arch)
        try:
            bench = BlockBench(opened.student, opened.network, opened.anatomy, inputs, self._family.ancestor().module)
            whole = bench.whole()
            price = self._price(self._choices.sizes(frame))
            for block in (None, *self._blocks):
                name = "" if block is None else block.name
                done += 1
                if name in there:
                    continue
                if block is None:
                    self._entries.append(Entry("", _of(frame), whole, 0.0, price))
                else:
                    self._entries += self._make_block(block, frame, bench, whole)
                self._seconds += time.perf_counter() - began
                began = time.perf_counter()
                self._write(made_on, whole=False)
                reach("blocks")
                self._notify(f"blocks  {progress_bar(done / total)}  {done}/{total}  {name or 'the rest'}")
        except (RuntimeError, ValueError, TypeError) as error:  # the teacher's own code runs, which may raise anything
            why = str(error).partition("\n")[0][:160]
            what = f"a block of it cannot be run alone: {why}"
            raise TeacherError(Problem(f"teacher {self._family.ancestor().name}", what, "another sampler")) from None

    def _settings_of(self, block: CutBlock) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
        """Yield (values of its own choices, sizes of its axes) of every setting of a block that is there."""
        if block.depth and not block.left_at:
            return
        for values in itertools.product(*(self._choices.values[name] for name in block.choices)):
            chosen = dict(zip(block.choices, values, strict=True))
            sizes = self._choices.sizes(chosen)
            yield chosen, {axis: sizes[axis] for axis in block.axes}

    def _make_block(self, block: CutBlock, frame: Mapping[str, int], bench: BlockBench, whole: float) -> list[Entry]:
        settings = list(self._settings_of(block))
        distinct = list(dict.fromkeys(tuple(sizes.items()) for _, sizes in settings))
        seed = derive_seed(self._seed, "blocks", block.name)
        forms = [dict(sizes) for sizes in distinct]
        cut = [form for form in forms if form]
        losses = bench.replaced(block.name, cut, epochs=self._settings.epochs, seed=seed) if cut else []
        found = dict(zip((tuple(form.items()) for form in cut), losses, strict=True))
        ruled = _of(frame) | ({block.depth: block.left_at} if block.depth else {})
        around = self._choices.sizes(frame)
        base = self._price(around)

        def costs(sizes: Mapping[str, int], less: Mapping[str, float] = base) -> dict[str, float]:
            return {name: cost - less[name] for name, cost in self._price({**around, **sizes}).items()}

        entries = []
        for chosen, sizes in settings:
            loss = found.get(tuple(sizes.items()))
            answers_lost, local = (0.0, 0.0) if loss is None else (loss.answers - whole, loss.local)
            values = ruled | {name: (value,) for name, value in chosen.items()}
            entries.append(Entry(block.name, values, answers_lost, local, costs(sizes)))
        gone_at = tuple(v for v in self._choices.values.get(block.depth, ()) if v not in block.left_at)
        if gone_at:
            lost = bench.without(block.name)
            depth = next(depth for depth in self._family.anatomy.depths if block.name in depth.blocks)
            rank = depth.order.index(depth.blocks.index(block.name))
            gone = costs({depth.name: rank}, less=self._price({**around, depth.name: rank + 1}))
            values = _of(frame) | {block.depth: gone_at}
            entries.append(Entry(block.name, values, lost.answers - whole, lost.local, gone))
        return entries

    def _price(self, sizes: Mapping[str, int]) -> dict[str, float]:
        price = self._family.price_at(sizes)
        return {"macs": float(price.macs), "params": float(price.params)}

    def _check_costs(self) -> None:
        """Raise TeacherError where the costs of random students are not the sums of their blocks'."""
        library, draws = BlockLibrary(self._entries), np.random.default_rng(derive_seed(self._seed, "blocks"))
        for _ in range(_TRIED):
            drawn = {name: values[draws.integers(len(values))] for name, values in self._choices.values.items()}
            price = self._family.price(self._family.canonical(drawn))
            if library.price(drawn) != {"macs": price.macs, "params": price.params}:
                what = f"the costs of its students are no sums of its blocks' (one of {drawn} has {price})"
                raise TeacherError(Problem(f"teacher {self._family.ancestor().name}", what, "another sampler"))

    def _made_on(self) -> str:
        """Return a hash of what the entries follow from."""
        workshop, family = self._workshop, self._family
        of = {
            "teacher": family.ancestor().fingerprint,
            "data": workshop.data.fingerprint,
            "seed": self._seed,
            "settings": self._settings.model_dump(mode="json"),
            "choices": {name: list(values) for name, values in self._choices.values.items()},
            "blocks": [dataclasses.asdict(block) for block in self._blocks],
            "family": {**family.fingerprints, "options": {k: str(v) for k, v in workshop.sources.options.items()}},
        }
        return hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _write(self, made_on: str, *, whole: bool) -> None:
        saved = _Saved(made_on, self._seconds, whole, tuple(self._entries))
        write_text(self._path, json.dumps(dataclasses.asdict(saved)) + "\n")


def _of(frame: Mapping[str, int]) -> dict[str, tuple[Scalar, ...]]:
    return {name: (value,) for name, value in frame.items()}


def _read(path: Path) -> _Saved | None:
    """Return what a library file holds; None where there is none, or it is damaged."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        entries = tuple(Entry.from_dict(entry) for entry in plain["entries"])
        if plain["whole"]:
            BlockLibrary(entries)
        return _Saved(str(plain["made_on"]), float(plain["seconds"]), bool(plain["whole"]), entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
