"""The recipe of one training: read from a study's YAML, written to train.yaml, followed by `distil`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from kdnas.core.fidelity import Fidelity

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(pydantic.BaseModel):
    """A section of a configuration file: frozen, unknown keys refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


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


class LossTerm(pydantic.BaseModel):
    """One distillation loss: its registry name, its weight, and its own options beside them."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    type: str
    weight: Annotated[float, Field(ge=0.0)] = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """The loss's own options."""
        return dict(self.model_extra or {})


class Distillation(Section):
    """loss = task_weight * cross entropy + the sum of weight * distillation loss."""

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
    augmentation: Augmentation = Augmentation()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the processor computes it natively, else float32."""

    @property
    def fidelity(self) -> Fidelity:
        """How much of full training a score has seen that was reached so, from a random start."""
        return Fidelity(self.epochs, self.data_fraction, resolution_fraction=self.resolution_fraction)

    @pydantic.model_serializer(mode="wrap")
    def _without_the_full_resolution(self, plain: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the full resolution unsaid: hashes and records from before there was a choice stay what they are."""
        settings: dict[str, Any] = plain(self)
        if self.resolution_fraction == 1.0:
            settings.pop("resolution_fraction", None)
        return settings


class Recipe(Section):
    """One training, whole: what `distil` follows."""

    training: Training = Training()
    distillation: Distillation = Distillation()
