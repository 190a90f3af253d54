"""Whether speed costs accuracy on the GPU: the same students by captured steps, eager steps and the plain loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import kdnas_loop
import measure
import numpy as np
import outcome
import plain_loop
import setting
from bench import Bench, Row
from setting import Images
from torch import nn

from kdnas.core.data import ImageData
from kdnas.nn.normalise import Normalised
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate
from kdnas.training.recipe import Training

EAGER, CAPTURED = "kdnas, eager steps", "kdnas, captured steps"
_BATCH = 64
_IMAGES = 9000
_LOADERS = 8


def equality(bench: Bench) -> Iterator[Row]:
    """Train three students with each seed by three ways for one pass over CIFAR-10; `quick`: over random images.

    A comparison follows as soon as its trainings are there. Raises InputError where there is no CIFAR-10.
    """
    data = bench.data if bench.quick else setting.cifar10()
    teacher = bench.teacher() if bench.quick else setting.trained_teacher(bench.device)
    teacher.module.to(bench.device).eval()
    archs, seeds = outcome.small_archs()[: 1 if bench.quick else None], range(2 if bench.quick else 3)
    rows: list[Row] = []
    for ways, comparison in (((CAPTURED, EAGER), {"eager": EAGER}), ((measure.PLAIN,), {"plain": measure.PLAIN})):
        for arch, seed, way in itertools.product(archs, seeds, ways):
            score, failure = _trained(bench, data, teacher, setting.build(arch, data, seed), way, seed)
            rows.append({"way": way, "arch_id": arch.arch_id, "seed": seed, "accuracy": score})
            yield {**rows[-1], "graph_failure": failure}
        for line in outcome.compared(rows, **comparison, captured=CAPTURED):
            yield {"comparison": f"captured steps - {'eager steps' if EAGER in ways else 'plain loop'}", **line}


def _trained(
    bench: Bench, data: ImageData, teacher: Teacher, student: nn.Module, way: str, seed: int
) -> tuple[float, str | None]:
    """Return the test accuracy of one training, and why its steps could not be captured."""
    indices, failure = setting.some(data, min(_IMAGES, len(data.train)), "outcome"), None
    if way == measure.PLAIN:
        plain_loop.train(
            student, teacher.module, Images.of(data, indices),
            batch_size=_BATCH, device=bench.device, workers=0 if bench.quick else _LOADERS, seed=seed,
        )  # fmt: skip
    else:
        failure = kdnas_loop.train(
            student, teacher, data, indices,
            batch_size=_BATCH, device=bench.device, seed=seed, cache=bench.cache, graphs=way == CAPTURED,
        ).graph_failure  # fmt: skip
    network = Normalised(student, data.channel_mean, data.channel_std).to(bench.device)
    test = Batches(data, np.arange(len(data.test)), device=bench.device, split="test")
    return evaluate(network, test, Training(precision="float32" if way == measure.PLAIN else "bfloat16")), failure
