"""What every way of training is given: CIFAR-10, the networks, the recipe, and one machine's terms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import ImageData
from kdnas.core.seeds import derive_seed
from kdnas.nn.normalise import Normalised
from kdnas.students import family_for, stated_arch
from kdnas.study.config import DataConfig
from kdnas.study.loading import load_study
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher
from kdnas.training.recipe import Recipe, Training
from kdnas.workshop import opening

TEMPERATURE, TASK_WEIGHT, KD_WEIGHT = 4.0, 0.1, 0.9
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, WARMUP = 0.1, 0.9, 5e-4, 0.1
PADDING = 4
_TEACHERS_STUDY = Path(__file__).resolve().parents[1] / "cifar10_resnet"


def cifar10() -> ImageData:
    """Return CIFAR-10, decoded once; where there is only the subset of studies/gpu_check, that."""
    return opening.load_data(data_config(), opening.data_root(None), opening.cache_dir())


def data_config() -> DataConfig:
    """Return what names CIFAR-10; where there is only the subset of studies/gpu_check, that."""
    root = opening.data_root(None)
    if not (root / "cifar10.tar.xz").exists() and (root / "cifar10.npz").exists():
        return DataConfig(type="npz", path="cifar10.npz")
    return DataConfig(type="image_folder", path="cifar10.tar.xz")


def resnet(depth: int) -> Arch:
    """Return the CIFAR ResNet of `depth` 6n + 2 layers (He et al., CVPR 2016): widths 16, 32, 64, identity skips."""
    choices: dict[str, Any] = {"stem_width": 16}
    for stage, width in enumerate((16, 32, 64), 1):
        choices |= {f"stage{stage}.depth": (depth - 2) // 6, f"stage{stage}.width": width}
        choices |= {f"stage{stage}.bottleneck": "plain", f"stage{stage}.skip": "identity"}
    return stated_arch("resnet", choices)


def build(arch: Arch, data: ImageData, seed: int) -> nn.Module:
    """Return the freshly initialised network of `arch`; it takes normalised images."""
    torch.manual_seed(seed)
    return family_for(arch.family, data.task).build(arch)


def resnet56(data: ImageData, device: torch.device) -> Teacher:
    """Return ResNet-56 as a teacher. Its weights are random: how fast it is does not depend on them."""
    network = build(resnet(56), data, seed=0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.1)  # not zero anywhere, as training leaves them
    module = Normalised(network, data.channel_mean, data.channel_std).to(device).eval()
    stages = tuple(f"network.stages.{stage}" for stage in range(3))
    return Teacher("ResNet-56", module, stages, "network.classifier", fingerprint="resnet56 of studies/trial_speed")


def trained_teacher(device: torch.device) -> Teacher:
    """Return the trained teacher of studies/cifar10_resnet (162 M MACs)."""
    study = load_study(_TEACHERS_STUDY)
    sources = replace(opening.Sources.of_study(study.config, study.space), data=data_config())
    root, cache = opening.data_root(None), opening.cache_dir()
    return opening.Workshop(sources, data_root=root, cache=cache, device=device).teacher


def recipe(batch_size: int, epochs: int = 1) -> Recipe:
    """Return the recipe, as kdnas reads it, of so many passes over the images."""
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        warmup_fraction=WARMUP,
        augmentation=Augmentation(flip=True, crop_padding=PADDING),
    )
    return Recipe(training=training)  # the losses' defaults: cross entropy x 0.1 + kd x 0.9 at temperature 4


def some(data: ImageData, count: int, name: str) -> np.ndarray:
    """Return `count` training images, drawn once and for all under `name`."""
    drawn = np.random.default_rng(derive_seed(0, name)).permutation(len(data.train))[:count]
    return np.sort(drawn)


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, 3, 32, 32] in memory, labels int64 [N], and the channel statistics on the 0-255 scale."""

    images: torch.Tensor
    labels: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, data: ImageData, indices: np.ndarray) -> Images:
        """Return the training images `indices`."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.channel_mean, data.channel_std))
        return cls(
            torch.from_numpy(np.asarray(data.train.inputs["pixels"])[indices]),
            torch.from_numpy(np.asarray(data.train.targets)[indices].astype(np.int64)),
            mean,
            std,
        )
