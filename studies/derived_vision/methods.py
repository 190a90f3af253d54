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
from torch import Tensor, nn
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
_RATIOS = tuple(round(float(ratio), 3) for ratio in np.linspace(0.2, 0.97, 30))
"""Of the channels, for torch-pruning."""
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
        self.folder = folder
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
        module = _copied(teacher.module)
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

    # MACs do not fall steadily with the ratio, so every one is tried and the dearest within the bound is taken
    sizes = {ratio: traced_macs(pruned_by(ratio), raw[:1]) for ratio in _RATIOS}
    within = [ratio for ratio, macs in sizes.items() if macs <= bound]
    if not within:
        raise ValueError(f"no ratio prunes the teacher to {bound:,} MACs: the least is {min(sizes.values()):,}")
    ratio = max(within, key=lambda ratio: sizes[ratio])
    module = pruned_by(ratio).eval()
    student = with_taps(module, teacher.stages, teacher.classifier)
    return Begun(student, sizes[ratio], parameter_count(module), f"ratio {ratio:.3f}", True)


def _copied(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module).requires_grad_(True)
    copied.takes_raw = True  # type: ignore[assignment]
    return copied


def _made_plain(network: nn.Module, example: Tensor) -> None:
    """Replace timm's own layers, which ModelOpt does not know, by torch's: equal for inputs of the example's size."""
    for name, part in list(network.named_modules()):
        if type(part).__name__ == "BatchNormAct2d":
            norm = nn.BatchNorm2d(part.num_features, part.eps, part.momentum).train(part.training)
            norm.load_state_dict(part.state_dict())
            _put(network, name, nn.Sequential(norm, part.drop, part.act))
    seen: dict[str, tuple[int, int]] = {}
    dynamic = {name: part for name, part in network.named_modules() if type(part).__name__ == "Conv2dSame"}
    hooks = [
        part.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: tuple(inputs[0].shape[-2:])}))
        for name, part in dynamic.items()
    ]
    with torch.no_grad():
        network(example)
    for hook in hooks:
        hook.remove()
    for name, part in dynamic.items():
        missing = [
            max((-(-side // stride) - 1) * stride + size - side, 0)
            for side, stride, size in zip(seen[name], part.stride, part.kernel_size, strict=True)
        ]
        (top, left), (bottom, right) = [one // 2 for one in missing], [one - one // 2 for one in missing]
        plain = nn.Conv2d(
            part.in_channels, part.out_channels, part.kernel_size, part.stride, groups=part.groups,
            bias=part.bias is not None,
        )  # fmt: skip
        plain.load_state_dict(part.state_dict())
        _put(network, name, nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain))


def _put(network: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, own_name = name.rpartition(".")
    setattr(network.get_submodule(owner), own_name, part)


def fastnas(bench: Bench, size: str, seed: int) -> Begun:
    """The teacher pruned by NVIDIA ModelOpt's FastNAS to the derived one's MACs, scored on the validation photos."""
    import modelopt.torch.prune

    workshop, teacher, bound = bench.workshop, bench.workshop.teacher, bench.family.price(bench.found(size)).macs
    (raw,), _ = workshop.samples(_SAMPLES)
    module = _copied(teacher.module)
    whole = bench.family.network  # type: ignore[attr-defined]
    network = module.get_submodule(next(name for name, part in teacher.module.named_modules() if part is whole))
    entered: list[Tensor] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].detach()))
    with torch.no_grad():
        for inputs in raw.split(64):
            module(inputs)
    hook.remove()

    def score(_: nn.Module) -> float:
        return workshop.validation_score(workshop.entered(module))

    with torch.no_grad():
        before = module(raw[:8])
        _made_plain(network, entered[0][:1])
        torch.testing.assert_close(module(raw[:8]), before)
    modelopt.torch.prune.prune(
        network, mode="fastnas", constraints={"flops": f"{100 * bound / bench.teacher_macs:.2f}%"},
        dummy_input=entered[0][:1],
        config={"data_loader": entered, "collect_func": lambda batch: batch, "score_func": score,
                "checkpoint": str(bench.folder / "fastnas.pth"), "verbose": True},
    )  # fmt: skip
    student = with_taps(module.eval(), teacher.stages, teacher.classifier)
    macs = traced_macs(module, raw[:1])
    return Begun(student, macs, parameter_count(module), f"fastnas {macs}", True)


METHODS: Mapping[str, Callable[[Bench, str, int], Begun]] = {
    "derived": derived,
    "own": own,
    "even": even,
    "pruned": pruned,
    "fastnas": fastnas,
}
