"""The settings of random views of images, as a study states them."""

from __future__ import annotations

from typing import Annotated, Any, Self

import pydantic
from pydantic import Field

from kdnas.registry import Section, later

_BY_SECTION = ("random_resized_crop", "color_jitter", "rand_augment", "random_erasing")
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
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
    """`ops` random operations of one magnitude, 0 to 30: those of torchvision."""

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
    random_resized_crop: RandomResizedCrop | None = later(None)
    """`true` or `{}` for the usual values, as in all below. Applied after the mirroring, before `crop_padding`."""
    color_jitter: ColorJitter | None = later(None)
    rand_augment: RandAugment | None = later(None)
    random_erasing: RandomErasing | None = later(None)
    """Last, with `cutout`."""

    @pydantic.field_validator(*_BY_SECTION, mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        """Let `true` stand for the usual values, `false` for none."""
        return ({} if value else None) if isinstance(value, bool) else value
