"""Supernets: one set of weights that holds all students of a space, trained at once beside their teacher.

Here stands what a study may say of it; nothing heavy is imported, so that a study can be read at once.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdnas.registry import Section
from kdnas.training.supernet.policies import ShrinkingSettings


class SupernetSettings(Section):
    """What a supernet's training has beside the recipe of a student's."""

    shrinking: ShrinkingSettings = Field(default_factory=ShrinkingSettings)
    in_place: bool = True
    """In-place distillation: where a step has the largest subnet, the others learn from it instead of the teacher."""
    resolutions: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = ()
    """Sides in pixels that images may be resized to, at most the data's own; empty: that one alone."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Augmented views of the samples until the first comes again; the teacher is asked about each once. A supernet's
    training takes many: where the teacher is expensive, a few will do. None: none comes again."""
    recalibration_images: Annotated[int, Field(ge=2)] = 512
    """Training samples that the batch-norm statistics of a scored subnet are estimated on."""
    check_images: Annotated[int, Field(ge=2)] = 1000
    """Validation samples that subnets are scored on during the training, at most; fewer where the budget is small."""
