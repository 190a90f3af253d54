"""How fast transformers train: one cut out of a vision transformer, and one that reads texts; eager and captured steps.

Weights, images and tokens are random: speed does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from bench import Bench, Row, speed
from torch import Tensor, nn

from kdnas.core.data import Data, Samples
from kdnas.core.space import SearchSpace
from kdnas.core.text import TextData
from kdnas.nn.normalise import Normalised
from kdnas.students import StudentFamily, family_for, stated_arch
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.loop import distil
from kdnas.training.recipe import Recipe, Training
from kdnas.training.teacher_cache import TeacherCache

_TOKENS, _WORDS = 64, 30_522


def derived(bench: Bench) -> Iterator[Row]:
    """A student cut to half of its width, depth and inner width out of a vision transformer of 12 layers."""
    data, layers = bench.data, 2 if bench.quick else 12
    choices = {"patch_size": 4, "width": 192, "depth": layers, "heads": 6, "head_size": 32, "distillation_token": False}
    choices |= {f"layer{number}.mlp_ratio": 4 for number in range(1, layers + 1)}
    network = _built(family_for("vit", data.task), choices)
    module = Normalised(network, data.channel_mean, data.channel_std).to(bench.device).eval()
    teacher = Teacher("vision transformer", module, (), None, "vision transformer of studies/gpu_check")
    images = torch.from_numpy(np.asarray(data.train.inputs["pixels"][:64])).float()
    labels = torch.from_numpy(np.asarray(data.train.targets[:64]))

    def samples(count: int) -> tuple[tuple[Tensor, ...], Tensor]:
        return (images[:count].to(bench.device),), labels[:count].to(bench.device)

    family = family_for("derived", data.task, {"teacher": teacher}, samples, options={"importance": "l1"})
    space = family.space(SearchSpace("derived", "derived", ()))
    half = {choice.name: choice.values[len(choice.values) // 2] for choice in space.choices}
    arch = family.canonical(space.active(half))
    yield from _trained(bench, data, teacher, lambda: family.inherit(arch), {"student_macs": family.price(arch).macs})


def texts(bench: Bench) -> Iterator[Row]:
    """A student of four layers that reads 64 tokens, taught by one of twelve, both of the family bert."""
    count, rng = 96 if bench.quick else 16_384, np.random.default_rng(0)
    tokens = rng.integers(5, _WORDS, (count, _TOKENS), dtype=np.int32)
    rows = Samples({"tokens": tokens, "mask": np.ones_like(tokens, dtype=np.uint8)}, rng.integers(0, 2, count))
    data = TextData(
        "random texts", ("0", "1"), rows, rows, "random texts",
        tokenizer=Path("nowhere"), vocabulary=_WORDS, length=_TOKENS,
    )  # fmt: skip
    family = family_for("bert", data.task)

    def choices(layers: int, width: int) -> dict[str, int | str]:
        of_layers = {f"layer{number}.mlp_ratio": 4 for number in range(1, layers + 1)}
        sizes = {"width": width, "depth": layers, "heads": width // 32, "head_size": 32, "embedding_width": 128}
        return {**sizes, "length": _TOKENS, "norm": "first", **of_layers}

    module = _built(family, choices(2 if bench.quick else 12, 384)).to(bench.device).eval()
    teacher = Teacher("encoder", module, (), None, "encoder of studies/gpu_check")
    arch = stated_arch("bert", choices(2 if bench.quick else 4, 256))
    macs = {"student_macs": family.price(arch).macs}
    yield from _trained(bench, data, teacher, lambda: family.build(arch), macs)


def _built(family: StudentFamily, choices: dict[str, int | str]) -> nn.Module:
    torch.manual_seed(0)
    return family.build(stated_arch(family.name, choices))


def _trained(bench: Bench, data: Data, teacher: Teacher, student: Callable[[], nn.Module], facts: Row) -> Iterator[Row]:
    """Yield the speed of a student's training at batches from large to small, by captured steps and by eager ones."""
    batches = Batches(data, np.arange(len(data.train)), device=bench.device)
    for batch_size in (32,) if bench.quick else (1024, 256):
        training = Training(epochs=bench.epochs, batch_size=batch_size, optimizer="adamw", learning_rate=1e-3)
        for graphs in (True, False):
            trained = distil(
                student(), teacher, batches, None, Recipe(training=training), data=data, seed=0,
                device=bench.device, graphs=graphs, teacher_cache=TeacherCache(bench.cache),
            )  # fmt: skip
            yield {
                "batch_size": batch_size,
                "graphs": graphs,
                **facts,
                **speed(trained.history, len(batches)),
                "graph_failure": trained.graph_failure,
            }
