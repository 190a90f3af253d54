"""kdnas's quick path teaches as well as a plain float32 loop: after the same number of steps, within noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.core.data import ImageData
from kdnas.nn.normalise import Normalised
from kdnas.students import family_for
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.loop import distil
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training
from kdnas.training.teacher_cache import TeacherCache

CPU = torch.device("cpu")
EPOCHS, TEACHER_EPOCHS, BATCH, RATE = 6, 8, 32, 0.1
EVERY = 2
"""Students learn from every second image."""
CHOICES = [
    {"bottleneck": "plain", "skip": "identity", "depth": 1, "width": 12},
    {"bottleneck": 0.5, "skip": "projection", "depth": 2, "width": 16},
    {"bottleneck": "plain", "skip": "none", "depth": 1, "width": 16},
]


def student(data: ImageData, number: int, seed: int) -> nn.Module:
    family, shape = family_for("resnet", data.task), CHOICES[number]
    choices = {"stem_width": 8, **{f"stage1.{name}": value for name, value in shape.items()}}
    choices |= {f"stage2.{name}": value for name, value in {**shape, "width": 24, "depth": 1}.items()}
    torch.manual_seed(seed)
    return family.build(family.canonical(choices))


def plain_batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch, cropped at random."""
    order = torch.randperm(len(labels))
    for start in range(0, len(order) - 1, BATCH):
        chosen = order[start : start + BATCH]
        padded = F.pad(images[chosen], (1, 1, 1, 1))
        corners = torch.randint(0, 3, (len(chosen), 2)).tolist()
        crops = [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, corners, strict=True)]
        yield torch.stack(crops), labels[chosen]


def plainly_trained(
    network: nn.Module, teacher: nn.Module | None, data: ImageData, seed: int, epochs: int = EPOCHS, every: int = EVERY
) -> nn.Module:
    """Train on the raw images, in float32, asking the teacher for each batch; return the module on raw images."""
    torch.manual_seed(seed)
    module = Normalised(network, data.channel_mean, data.channel_std).train()
    images = torch.tensor(np.asarray(data.train.inputs["pixels"][::every])).float()
    labels = torch.tensor(np.asarray(data.train.targets[::every]))
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
    total = epochs * math.ceil(len(labels) / BATCH)
    warmup, step = round(0.1 * total), 0
    for _ in range(epochs):
        for inputs, targets in plain_batches(images, labels):
            progress = (step - warmup) / (total - warmup)
            rate = RATE * (step + 1) / warmup if step < warmup else RATE * (1 + math.cos(math.pi * progress)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            ours = module(inputs)
            loss = F.cross_entropy(ours, targets)
            if teacher is not None:
                with torch.no_grad():
                    theirs = F.softmax(teacher(inputs) / 4, dim=1)
                soft = F.kl_div(F.log_softmax(ours / 4, dim=1), theirs, reduction="batchmean")
                loss = 0.1 * loss + 0.9 * 16 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return module.eval()


@torch.no_grad()
def score(module: nn.Module, data: ImageData) -> float:
    logits = module(torch.tensor(np.asarray(data.test.inputs["pixels"])).float())
    return float((logits.argmax(1) == torch.tensor(np.asarray(data.test.targets))).float().mean())


@pytest.mark.slow
def test_accuracy_after_the_same_steps_is_that_of_a_plain_loop(data, tmp_path: Path, monkeypatch) -> None:
    """Three students, three seeds: the mean of the paired differences lies within its noise."""
    monkeypatch.setattr("kdnas.training.fused_norm.LEAST_PIXELS", 0)
    module = plainly_trained(student(data, 1, seed=100), None, data, seed=100, epochs=TEACHER_EPOCHS, every=1)
    teacher = Teacher("plain", module, (), "network.classifier", fingerprint="plain")
    assert score(module, data) > 0.8
    training = Training(epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, augmentation=Augmentation(crop_padding=1))
    recipe = Recipe(
        training=training, distillation=Distillation(task_weight=0.1, losses=(LossTerm(type="kd", weight=0.9),))
    )
    train = Batches(data, np.arange(0, len(data.train), EVERY), device=CPU)
    differences, plain = [], []
    for number in range(len(CHOICES)):
        for seed in range(3):
            network = student(data, number, seed)
            options = {"data": data, "seed": seed, "device": CPU, "teacher_cache": TeacherCache(tmp_path)}
            distil(network, teacher, train, None, recipe, **options)
            quick = score(Normalised(network, data.channel_mean, data.channel_std).eval(), data)
            plain.append(score(plainly_trained(student(data, number, seed), module, data, seed), data))
            differences.append(quick - plain[-1])
    noise = statistics.stdev(differences) / math.sqrt(len(differences))
    assert statistics.mean(plain) > 0.5
    assert abs(statistics.mean(differences)) < max(0.01, 2.5 * noise), differences
