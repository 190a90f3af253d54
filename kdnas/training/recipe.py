"""The recipe of one training: read from a study's YAML, written to train.yaml, followed by `distil`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from kdnas.core.fidelity import Fidelity
from kdnas.errors import ConfigError

_BY_SECTION = ("random_resized_crop", "color_jitter", "rand_augment", "random_erasing")
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


NUMERICS = ("precision", "threads", "fused_norms")
"""Training settings that decide how numbers are computed: `auto` until `kdnas.training.numerics` settles them."""
_LATER: dict[str, Any] = {"resolution_fraction": 1.0, "ema": None, "threads": "auto", "fused_norms": "auto"}
"""Training settings that are younger than the first records, and what they were before."""


class Section(pydantic.BaseModel):
    """A section of a configuration file: frozen, unknown keys refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


Shares = tuple[Annotated[float, Field(gt=0.0, le=1.0)], Annotated[float, Field(gt=0.0, le=1.0)]]
Ratios = tuple[Annotated[float, Field(gt=0.0, le=100.0)], Annotated[float, Field(gt=0.0, le=100.0)]]


class _Boxed(Section):
    """Random boxes: their area as a share of the image's, and their width / height, both as (lowest, highest)."""

    scale: Shares
    ratio: Ratios

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{name} needs its lowest value first, got {low:g}, {high:g}")
        return self


class RandomResizedCrop(_Boxed):
    """A random box of the image, resized to the image's size."""

    scale: Shares = (0.08, 1.0)
    ratio: Ratios = (3 / 4, 4 / 3)


class ColorJitter(Section):
    """Random factors, uniform in 1 - value .. 1 + value, and a random turn of the hue by up to `hue` of the circle."""

    brightness: Annotated[float, Field(ge=0.0, le=10.0)] = 0.4
    contrast: Annotated[float, Field(ge=0.0, le=10.0)] = 0.4
    saturation: Annotated[float, Field(ge=0.0, le=10.0)] = 0.4
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0


class RandAugment(Section):
    """`ops` random operations of one magnitude, 0 to 30: those of `kdnas.training.rand_augment`."""

    ops: Annotated[int, Field(ge=1, le=14)] = 2
    magnitude: Annotated[float, Field(ge=0.0, le=30.0)] = 9.0


class RandomErasing(_Boxed):
    """A random box set to the channel mean, in this share of the views."""

    probability: Fraction = 0.5
    scale: Shares = (0.02, 0.33)
    ratio: Ratios = (0.3, 3.3)


class Augmentation(Section):
    """Random views. Every draw is a function of (seed, view index, sample), shared by all trials of a study."""

    flip: bool = False
    """Mirror left-right with probability one half."""
    crop_padding: Annotated[int, Field(ge=0, le=64)] = 0
    """Zero-pad by so many pixels, then crop back at a random place."""
    cutout: Annotated[int, Field(ge=0, le=512)] = 0
    """Side in pixels of one square set to the channel mean (DeVries and Taylor, 2017)."""
    mixup: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Beta parameter of mixup (Zhang et al., ICLR 2018); 0 switches it off."""
    random_resized_crop: RandomResizedCrop | None = None
    """`true` or `{}` for the usual values, as in all below. Applied after the mirroring, before `crop_padding`."""
    color_jitter: ColorJitter | None = None
    rand_augment: RandAugment | None = None
    random_erasing: RandomErasing | None = None
    """Last, with `cutout`."""

    @pydantic.field_validator(*_BY_SECTION, mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        """Let `true` stand for the usual values, `false` for none."""
        return ({} if value else None) if isinstance(value, bool) else value

    @pydantic.model_serializer(mode="wrap")
    def _without_what_is_off(self, plain: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave unsaid what is not asked for: old hashes and records stay what they are."""
        settings: dict[str, Any] = plain(self)
        return {name: value for name, value in settings.items() if name not in _BY_SECTION or value is not None}


class LossTerm(pydantic.BaseModel):
    """One distillation loss: its registry name, its weight, and its own options beside them."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    type: str
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Unless stated, that of the loss's authors, as `kdnas list losses` tells: 1 for most, 1000 for attention."""
    warmup_fraction: Fraction = 0.0
    """Share of all steps in which the weight rises in equal steps to `weight`, as dkd's authors have it."""

    @property
    def options(self) -> dict[str, Any]:
        """The loss's own options."""
        return dict(self.model_extra or {})

    @pydantic.model_validator(mode="before")
    @classmethod
    def _weighted_as_usual(cls, given: Any) -> Any:
        """Let a term that states no weight have its loss's; a loss that is not there is told of elsewhere."""
        if not isinstance(given, dict) or "weight" in given or not isinstance(given.get("type"), str):
            return given
        from kdnas.losses import LOSSES  # here, because it brings torch

        try:
            return {**given, "weight": LOSSES.get(given["type"]).usual_weight}
        except ConfigError:
            return given

    @pydantic.model_serializer(mode="wrap")
    def _without_no_warmup(self, plain: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave no warm-up unsaid: hashes and records from before there was a choice stay what they are."""
        settings: dict[str, Any] = plain(self)
        if self.warmup_fraction == 0.0:
            settings.pop("warmup_fraction", None)
        return settings


class Distillation(Section):
    """loss = task_weight * cross entropy + the sum of weight * distillation loss.

    The default is that of kd. Beside dkd and losses that read features their authors set `task_weight` to 1, each loss
    says with which weight.
    """

    task_weight: Annotated[float, Field(ge=0.0)] = 0.1
    label_smoothing: Fraction = 0.0
    losses: tuple[LossTerm, ...] = (LossTerm(type="kd", weight=0.9),)
    teacher_top_k: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many of the teacher's logits for each image, the mass of the others spread evenly, where thousands
    of classes would fill the disk. None: all of them, exactly."""


class Training(Section):
    """How a student is trained. `epochs`, `data_fraction` and `resolution_fraction` are the fidelity of the score."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 5
    data_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training split that is used, stratified and seeded by the study."""
    resolution_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the images' height and width that the student is trained and scored at, in whole pixels, at least 4. The
    teacher sees the whole images, the student's costs are those at the whole resolution, and retrainings are at it."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """SGD's Nesterov momentum; AdamW ignores it."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 5e-4
    """Not applied to biases and norm parameters."""
    warmup_fraction: Fraction = 0.1
    """Share of all steps with a linear warm-up; a cosine to zero follows."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of the moving average of the weights, such as 0.999, that is scored and kept in their place; in the first
    steps it is smaller. None: the weights themselves. A supernet is trained without it."""
    augmentation: Augmentation = Augmentation()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the processor computes it natively, else float32. What is `auto` here and below is
    decided once and recorded: `kdnas.training.numerics`."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """CPU threads of one training, whatever number of workers there is; auto: 1."""
    fused_norms: Literal["auto"] | bool = "auto"
    """Batch norm, residual sum and ReLU in one compiled pass where one CPU thread trains for long enough to pay for it.
    auto: where there is a C compiler."""

    @property
    def fidelity(self) -> Fidelity:
        """How much of full training a score has seen that was reached so, from a random start."""
        return Fidelity(self.epochs, self.data_fraction, resolution_fraction=self.resolution_fraction)

    @pydantic.model_serializer(mode="wrap")
    def _without_later_defaults(self, plain: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave unsaid what is as it was before there was a choice: old hashes and records stay what they are."""
        settings: dict[str, Any] = plain(self)
        for name, default in _LATER.items():
            if settings.get(name) == default:
                del settings[name]
        return settings


def numerics_of(training: Training, other: Training | Mapping[str, Any]) -> Training:
    """Return `training` with the numerics of `other`, a training or its plain form, where its own are `auto`."""
    said = other if isinstance(other, Mapping) else {name: getattr(other, name) for name in NUMERICS}
    update = {name: said[name] for name in NUMERICS if getattr(training, name) == "auto" and name in said}
    return training.model_copy(update=update)


class Recipe(Section):
    """One training, whole: what `distil` follows."""

    training: Training = Training()
    distillation: Distillation = Distillation()
