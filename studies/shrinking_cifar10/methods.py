"""The methods: each spends the same budget and gives three students.

What is counted: 3 x MACs for each image that a student is trained on, 1 x for each image that a policy measures on. All
methods but `alone` ask the fixed teacher about the same views, `epochs` of each image, and its answers are kept: they
are counted for nobody; nor are an assistant's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from setting import SIZES, VIEW_SEED, Bench
from torch import nn

from kdnas.core.seeds import derive_seed
from kdnas.core.shrinking import ShrinkingRecord
from kdnas.nn.normalise import Normalised
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate
from kdnas.training.loop import distil
from kdnas.training.recipe import Recipe
from kdnas.training.supernet import SupernetSettings
from kdnas.training.supernet.policies import ShrinkingSettings
from kdnas.training.supernet.subnets import SubnetSpec
from kdnas.training.supernet.training import train_supernet

POLICIES = ("once_for_all", "sandwich", "random", "delayed", "adaptive")


@dataclass
class Outcome:
    """Students by target, what they cost, and for a supernet its shrinking and the students before fine-tuning."""

    students: dict[str, nn.Module] = field(default_factory=dict)
    spent_macs: int = 0
    cut: dict[str, float] = field(default_factory=dict)
    shrinking: ShrinkingRecord | None = None


def direct(bench: Bench, seed: int) -> Outcome:
    """Return each target distilled from the teacher, all on equally many images."""
    return _each(bench, seed, dict.fromkeys(SIZES, bench.setting.epochs), bench.teacher)


def cross_entropy(bench: Bench, seed: int) -> Outcome:
    """Return each target trained on the labels alone."""
    return _each(bench, seed, dict.fromkeys(SIZES, bench.setting.epochs), None)


def alone(bench: Bench, seed: int) -> Outcome:
    """Return each target distilled from the teacher with a third of the budget: what one gets who wants one size."""
    macs = bench.macs
    share = bench.setting.epochs * sum(macs.values()) / len(macs)
    return _each(bench, seed, {size: int(share // macs[size]) for size in SIZES}, bench.teacher)


def inherited(bench: Bench, seed: int) -> Outcome:
    """Return each target distilled as in `direct`, the middle one from the large one's weights, the small from its."""
    outcome, larger = Outcome(), None
    for size in reversed(SIZES):
        student = bench.build(size, seed, None if larger is None else (larger, outcome.students[larger].eval()))
        recipe = bench.setting.recipe(bench.setting.epochs)
        outcome.spent_macs += _train(bench, size, student, bench.teacher, recipe, seed)
        outcome.students[size], larger = student, size
    return outcome


def chain(bench: Bench, seed: int) -> Outcome:
    """Return the large target distilled from the teacher, the middle one from the large one, the small from that.

    Teacher assistants, Mirzadeh et al. (AAAI 2020).
    """
    outcome, teacher = Outcome(), bench.teacher
    for size in reversed(SIZES):
        student = bench.build(size, seed)
        recipe = bench.setting.recipe(bench.setting.epochs)
        outcome.spent_macs += _train(bench, size, student, teacher, recipe, seed, cached=teacher is bench.teacher)
        outcome.students[size] = student
        assistant = Normalised(student, bench.data.channel_mean, bench.data.channel_std).eval().requires_grad_(False)
        teacher = Teacher(f"{size} assistant", assistant, (), None, fingerprint=f"{size} {seed}")
    return outcome


def shared(policy: str) -> Callable[[Bench, int], Outcome]:
    """Return the method that trains one supernet by `policy`, cuts the targets out and fine-tunes each."""

    def method(bench: Bench, seed: int) -> Outcome:
        setting = bench.setting
        settings = SupernetSettings(shrinking=ShrinkingSettings(policy=policy), views=setting.epochs)
        torch.manual_seed(derive_seed(seed, "weights", "supernet"))
        supernet = bench.family.supernet(bench.space)
        trained = train_supernet(
            supernet, bench.space, bench.family, bench.teacher, bench.train, bench.validation,
            setting.recipe(setting.epochs), settings,
            budget_macs=setting.budget(bench.macs) - setting.fine_tuning(bench.macs),
            data=bench.data, seed=seed, view_seed=VIEW_SEED, device=bench.device, teacher_cache=bench.cache,
        )  # fmt: skip
        share = sum(stage.spent for stage in trained.shrinking.stages)
        outcome = Outcome(spent_macs=round(share * trained.shrinking.budget_macs), shrinking=trained.shrinking)
        recipe = setting.recipe(setting.fine_tune_epochs, fine_tune=True)
        for size in SIZES:
            student = trained.scorer.cut(
                trained.supernet, SubnetSpec(bench.archs[size], bench.data.task.image_shape[1])
            )
            outcome.cut[size] = _accuracy(bench, student, bench.test)
            outcome.spent_macs += _train(bench, size, student, bench.teacher, recipe, seed)
            outcome.students[size] = student
        return outcome

    return method


METHODS: Mapping[str, Callable[[Bench, int], Outcome]] = {
    "direct": direct,
    "cross_entropy": cross_entropy,
    "inherited": inherited,
    "chain": chain,
    **{policy: shared(policy) for policy in POLICIES},
    "alone": alone,
}


def cell(bench: Bench, method: str, seed: int) -> tuple[dict[str, Any], ShrinkingRecord | None]:
    """Return the record of one method with one seed, and its shrinking where it trains a supernet."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    outcome = METHODS[method](bench, seed)
    record = {
        "method": method,
        "seed": seed,
        "setting": bench.setting.as_dict(),
        "device": bench.device.type,
        "macs": bench.macs,
        "budget_macs": bench.setting.budget(bench.macs),
        "spent_macs": outcome.spent_macs,
        "test": {size: _accuracy(bench, outcome.students[size], bench.test) for size in SIZES},
        "validation": {size: _accuracy(bench, outcome.students[size], bench.validation) for size in SIZES},
        "cut_test": outcome.cut,
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - begun_cpu, 1),
    }
    return record, outcome.shrinking


def _each(bench: Bench, seed: int, epochs: Mapping[str, int], teacher: Teacher | None) -> Outcome:
    outcome = Outcome()
    for size in SIZES:
        student = bench.build(size, seed)
        recipe = bench.setting.recipe(epochs[size])
        outcome.spent_macs += _train(bench, size, student, teacher, recipe, seed)
        outcome.students[size] = student
    return outcome


def _train(
    bench: Bench, size: str, student: nn.Module, teacher: Teacher | None, recipe: Recipe, seed: int, cached: bool = True
) -> int:
    """Train `student` in place and return the MACs that it cost."""
    distil(
        student, teacher, bench.train, None, recipe, data=bench.data, seed=seed, view_seed=VIEW_SEED,
        device=bench.device, teacher_cache=bench.cache if cached else None,
    )  # fmt: skip
    return 3 * bench.macs[size] * len(bench.train) * recipe.training.epochs


def _accuracy(bench: Bench, student: nn.Module, images: Batches) -> float:
    network = Normalised(student, bench.data.channel_mean, bench.data.channel_std).to(bench.device)
    return round(evaluate(network, images, bench.setting.recipe(1).training), 5)
