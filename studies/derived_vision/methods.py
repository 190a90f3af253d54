"""The students of every method, as they begin: cut by kdnas, drawn anew, scaled evenly, or pruned by torch-pruning."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kdnas.core.arch import Arch
from kdnas.nn.taps import with_taps
from kdnas.nn.tracing import parameter_count, traced_macs
from kdnas.students import family_for, sibling_family
from kdnas.study.loading import LoadedStudy
from kdnas.study.spaces import load_space
from kdnas.workshop.opening import Sources, Workshop, cache_dir, data_root

SIZES = {"1/2": 0.5, "1/4": 0.25, "1/10": 0.1}
"""Shares of the teacher's MACs, none of which a student exceeds."""
_DRAWS = 3000
_SAMPLES = 256
_OWN_SPACE = "photo64_mobilenet"


@dataclass(frozen=True)
class Begun:
    """A student before its final training, and what it costs."""

    network: nn.Module
    macs: int
    params: int
    arch: str
    from_teacher: bool


@dataclass(frozen=True)
class Searched:
    """A student that a search has scored as it is cut."""

    arch: Arch
    accuracy: float
    """On the validation photos."""
    macs: int


def searched_students(tables: Sequence[Path]) -> list[Searched]:
    """Return the students that were scored as cut in these trials.csv, each once."""
    found: dict[str, Searched] = {}
    for table in tables:
        with table.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["state"] == "complete" and int(row["fidelity_epochs"]) == 0:
                    choices = json.loads(row["arch"])["choices"]
                    arch = Arch.of("derived", choices)
                    found[arch.arch_id] = Searched(arch, float(row["accuracy"]), int(row["macs"]))
    return list(found.values())


class Bench:
    """The opened study, and what its searches have scored, as their trials.csv tell it."""

    def __init__(self, loaded: LoadedStudy, tables: Sequence[Path], folder: Path):
        config = loaded.config
        self.config = config
        self.trials = searched_students(tables)
        sources = Sources.of_study(config, loaded.space, folder)
        self.workshop = Workshop(sources, data_root=data_root(None), cache=cache_dir(), device=torch.device("cpu"))
        self.family = self.workshop.family
        self.teacher_macs = self.family.price(self.family.canonical({})).macs

    def found(self, size: str) -> Arch:
        """Return the best of the searched students within a size, by its score as it is cut: all have that."""
        within = [one for one in self.trials if one.macs <= SIZES[size] * self.teacher_macs]
        return max(within, key=lambda one: one.accuracy).arch

    def begun(self, arch: Arch, start: str, seed: int) -> Begun:
        """Return a student of `arch` as kdnas begins it."""
        network = self.workshop.begin(arch, start, seed)  # type: ignore[arg-type]
        price = sibling_family(self.family, arch.family).price(arch)
        return Begun(network, price.macs, price.params, arch.arch_id, start == "inherited")


def derived(bench: Bench, size: str, seed: int) -> Begun:
    """The best student that the search has found within the size, cut out of the teacher."""
    return bench.begun(bench.found(size), "inherited", seed)


def own(bench: Bench, size: str, seed: int) -> Begun:
    """A MobileNet of kdnas's own from random weights: of 3,000 drawn the one nearest to the MACs."""
    space = load_space(_OWN_SPACE, Path())
    family = family_for(space.family, bench.workshop.data.task)
    rng = np.random.default_rng(0)
    drawn = [family.canonical(space.active(space.random(rng))) for _ in range(_DRAWS)]
    bound = bench.family.price(bench.found(size)).macs
    within = [arch for arch in drawn if family.price(arch).macs <= bound]
    return bench.begun(max(within, key=lambda arch: family.price(arch).macs), "random", seed)


def even(bench: Bench, size: str, seed: int) -> Begun:
    """The teacher at full depth with one share of all its widths, of the derived one's parameters, cut alike."""
    wanted = bench.family.price(bench.found(size)).params
    choices = bench.family.choices.choices  # type: ignore[attr-defined]

    def scaled(share: float) -> Arch:
        return bench.family.canonical({one.name: one.whole if one.role == "depth" else share for one in choices})

    archs = [scaled(float(share)) for share in np.linspace(0.05, 0.99, 95)]
    nearest = min(archs, key=lambda arch: abs(bench.family.price(arch).params - wanted))
    return bench.begun(nearest, "inherited", seed)


def pruned(bench: Bench, size: str, seed: int) -> Begun:
    """The teacher pruned by torch-pruning to the derived one's MACs: first-order Taylor importance, over all layers."""
    import torch_pruning

    teacher, bound = bench.workshop.teacher, bench.family.price(bench.found(size)).macs
    (raw,), targets = bench.workshop.samples(_SAMPLES)
    whole = bench.family.network  # type: ignore[attr-defined]
    example = bench.family._opened[1]  # type: ignore[attr-defined]

    def pruned_by(ratio: float) -> nn.Module:
        module = copy.deepcopy(teacher.module).requires_grad_(True)
        path = next(name for name, part in teacher.module.named_modules() if part is whole)
        network = module.get_submodule(path)
        head = next(part for name, part in network.named_modules() if name == "classifier")
        for inputs, labels in zip(raw.split(64), targets.split(64), strict=True):
            F.cross_entropy(module(inputs), labels).backward()
        pruner = torch_pruning.pruner.BasePruner(
            network, example, importance=torch_pruning.importance.GroupTaylorImportance(), global_pruning=True,
            pruning_ratio=ratio, max_pruning_ratio=0.9, ignored_layers=[head], round_to=8,
        )  # fmt: skip
        pruner.step()
        network.zero_grad()
        return module

    low, high = 0.0, 0.97
    for _ in range(6):
        middle = (low + high) / 2
        fits = traced_macs(pruned_by(middle), raw[:1]) <= bound
        low, high = (low, middle) if fits else (middle, high)
    module = pruned_by(high).eval()
    module.takes_raw = True  # type: ignore[assignment]
    macs, params = traced_macs(module, raw[:1]), parameter_count(module)
    if macs > bound:
        raise ValueError(f"no ratio that was tried prunes the teacher to {bound:,} MACs: the last gives {macs:,}")
    student = with_taps(module, teacher.stages, teacher.classifier)
    return Begun(student, macs, params, f"ratio {high:.3f}", True)


METHODS: Mapping[str, Callable[[Bench, str, int], Begun]] = {
    "derived": derived,
    "own": own,
    "even": even,
    "pruned": pruned,
}
