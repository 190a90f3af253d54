"""What every method is given: CIFAR-10, the trained teacher, three target sizes, one recipe and one budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.data import ImageData, stratified_split
from kdnas.core.seeds import derive_seed
from kdnas.core.space import Choice, SearchSpace
from kdnas.nn.normalise import Normalised
from kdnas.students import StudentFamily, family_for
from kdnas.study.loading import load_study
from kdnas.study.spaces import load_space
from kdnas.tasks.image_classification import Augmentation
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.numerics import bfloat16_is_native
from kdnas.training.recipe import Recipe, Training
from kdnas.training.teacher_cache import TeacherCache
from kdnas.workshop import opening

SIZES = ("small", "middle", "large")
VALIDATION_FRACTION = 0.1
_TEACHERS_STUDY = Path(__file__).resolve().parents[1] / "cifar10_resnet"
VIEW_SEED = 0
"""All trainings see the same views of the images in the same order, so that the teacher answers each of them once."""


def _resnet(stem: int, depth: int, *widths: int) -> dict[str, Scalar]:
    choices: dict[str, Scalar] = {"stem_width": stem}
    for stage, width in enumerate(widths, 1):
        choices |= {f"stage{stage}.depth": depth, f"stage{stage}.width": width}
        choices |= {f"stage{stage}.bottleneck": "plain", f"stage{stage}.skip": "identity"}
    return choices


def _mobilenet(stem: int, *stages: tuple[int, int, int, int]) -> dict[str, Scalar]:
    choices: dict[str, Scalar] = {"stem_width": stem, "head_width": 0}
    for stage, (depth, width, expand, kernel) in enumerate(stages, 1):
        choices |= {f"stage{stage}.depth": depth, f"stage{stage}.width": width, f"stage{stage}.expand": expand}
        choices |= {f"stage{stage}.kernel": kernel, f"stage{stage}.squeeze_excite": False}
        choices |= {f"stage{stage}.skip": "identity"}
    return choices


TARGETS: Mapping[str, Mapping[str, dict[str, Scalar]]] = {
    "resnet": {
        "small": _resnet(8, 1, 8, 16, 32),
        "middle": _resnet(16, 2, 8, 24, 48),
        "large": _resnet(16, 3, 16, 32, 64),
    },
    "mobilenet": {
        "small": _mobilenet(8, (1, 8, 1, 3), (1, 16, 2, 3), (1, 24, 2, 3), (1, 48, 2, 3)),
        "middle": _mobilenet(8, (1, 16, 1, 3), (2, 24, 2, 3), (2, 40, 3, 3), (1, 72, 3, 3)),
        "large": _mobilenet(16, (1, 16, 2, 3), (2, 32, 3, 3), (3, 56, 3, 5), (2, 96, 4, 5)),
    },
}
"""By family, students of its space cifar_<family>; the large resnet is ResNet-20 (He et al., CVPR 2016)."""


@dataclass(frozen=True)
class Setting:
    """The size of the study. A budget is three times the sum of the targets' MACs for each of `epochs` x `images`.

    That is what each target's own training costs; a supernet gets what is left after `fine_tune_epochs` of each target.
    """

    images: int
    """Training images, of the 45,000 that are not for validation."""
    family: str = "resnet"
    """Whose targets are trained."""
    epochs: int = 10
    fine_tune_epochs: int = 2
    batch_size: int = 64
    seeds: int = 3
    validation_images: int = 2_500
    test_images: int = 10_000
    learning_rate: float = 0.1
    fine_tune_learning_rate: float = 0.05

    def budget(self, macs: Mapping[str, int]) -> int:
        """Return the budget in MACs, the same for every method."""
        return 3 * sum(macs.values()) * self.epochs * self.images

    def fine_tuning(self, macs: Mapping[str, int]) -> int:
        """Return what of it a supernet's training leaves for the targets."""
        return 3 * sum(macs.values()) * self.fine_tune_epochs * self.images

    def recipe(self, epochs: int, *, fine_tune: bool = False) -> Recipe:
        """Return the recipe of every training: cross entropy x 0.1 + kd x 0.9 at temperature 4, shift and flip."""
        training = Training(
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=self.fine_tune_learning_rate if fine_tune else self.learning_rate,
            augmentation=Augmentation(flip=True, crop_padding=4),
        )
        return Recipe(training=training)

    def as_dict(self) -> dict[str, Any]:
        """Return the plain record that is kept with every result: it may not be mixed with another setting's."""
        return asdict(self)


VARIANTS = {
    "default": Setting(images=3_000),
    "quick": Setting(images=128, seeds=1, validation_images=250, test_images=500),
    "full": Setting(images=45_000, epochs=100, fine_tune_epochs=20, batch_size=128),
}


def setting_of(variant: str, family: str) -> Setting:
    """Return the setting of `variant` for `family`.

    On a CPU mobilenets get a quarter of the images: the same MACs take them several times as long.
    """
    setting = VARIANTS[variant]
    fewer = variant == "default" and family == "mobilenet"
    return replace(setting, family=family, images=setting.images // 4 if fewer else setting.images)


@dataclass(frozen=True)
class Bench:
    """Data and teacher of studies/cifar10_resnet (162 M MACs), and the device of one process."""

    setting: Setting
    data: ImageData
    teacher: Teacher
    cache: TeacherCache
    device: torch.device

    @classmethod
    def open(cls, setting: Setting, cache: Path, device: torch.device) -> Bench:
        """Return the bench. Raises InputError where data or teacher are missing."""
        study = load_study(_TEACHERS_STUDY)
        opened = opening.Workshop(
            opening.Sources.of_study(study.config, study.space),
            data_root=opening.data_root(None),
            cache=opening.cache_dir(),
            device=device,
        )
        return cls(setting, opened.data, opened.teacher, TeacherCache(cache), device)

    @cached_property
    def train(self) -> Batches:
        """The training images: of every class the same share, drawn once and for all."""
        kept, _ = self._split
        _, drawn = stratified_split(self.data.train.targets[kept], self.setting.images / len(kept), _seed("images"))
        return self._batches(kept[drawn])

    @cached_property
    def validation(self) -> Batches:
        """Images that no student is trained on. The teacher was, as its makers say."""
        _, held_out = self._split
        return self._batches(held_out[:: len(held_out) // self.setting.validation_images])

    @cached_property
    def test(self) -> Batches:
        """The test images."""
        indices = np.arange(0, len(self.data.test), len(self.data.test) // self.setting.test_images)
        return Batches(self.data, indices, device=self.device, split="test")

    @cached_property
    def family(self) -> StudentFamily:
        """The student family."""
        return family_for(self.setting.family, self.data.task)

    @cached_property
    def archs(self) -> dict[str, Arch]:
        """The targets."""
        return {size: self.family.canonical(TARGETS[self.setting.family][size]) for size in SIZES}

    @cached_property
    def macs(self) -> dict[str, int]:
        """The MACs of each target."""
        return {size: self.family.price(arch).macs for size, arch in self.archs.items()}

    @cached_property
    def space(self) -> SearchSpace:
        """The networks between the targets: of the space's values, those of the targets and the numbers between."""
        space, targets = load_space(f"cifar_{self.setting.family}", Path()), TARGETS[self.setting.family].values()
        choices: list[Choice] = []
        fixed: dict[str, Scalar] = {}
        for choice in space.choices:
            values = _between(choice.values, [target[choice.name] for target in targets])
            if len(values) > 1:
                choices.append(Choice(choice.name, values))
            else:
                fixed[choice.name] = values[0]
        return replace(space, name="between_targets", choices=tuple(choices), fixed=fixed)

    @property
    def bfloat16(self) -> bool:
        """Whether accuracies are computed in bfloat16, as trainings are where the processor has instructions for it."""
        return bfloat16_is_native(self.device)

    def build(self, size: str, seed: int, larger: tuple[str, nn.Module] | None = None) -> nn.Module:
        """Return the target, freshly initialised or with weights of a `larger` one; it takes normalised images."""
        torch.manual_seed(derive_seed(seed, "weights", size))
        if larger is None:
            return self.family.build(self.archs[size])
        name, network = larger
        module = Normalised(network, self.data.channel_mean, self.data.channel_std).to(self.device)
        teacher = Teacher(name, module, (), None, fingerprint="", arch=self.archs[name])
        return family_for(self.setting.family, self.data.task, {name: teacher}, self._samples).inherit(self.archs[size])

    def _samples(self, count: int) -> tuple[tuple[Tensor, ...], Tensor]:
        batch = next(self.train.epoch(0, batch_size=min(count, len(self.train)), seed=0))
        return batch.inputs, batch.targets

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        return stratified_split(self.data.train.targets, VALIDATION_FRACTION, _seed("validation split"))

    def _batches(self, indices: np.ndarray) -> Batches:
        return Batches(self.data, indices, device=self.device)


def _between(values: tuple[Scalar, ...], used: list[Scalar]) -> tuple[Scalar, ...]:
    numbers = [value for value in used if not isinstance(value, bool | str)]
    if numbers:
        return tuple(value for value in values if min(numbers) <= value <= max(numbers))  # type: ignore[operator]
    return tuple(value for value in values if value in used)


def _seed(purpose: str) -> int:
    return derive_seed(0, "shrinking_cifar10", purpose)
