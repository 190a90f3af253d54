"""Supernets: one set of weights that holds all students of a space, trained at once with their teacher.

Here stands what a study may state of it; nothing heavy is imported, so that a study can be read at once.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field

from kdnas.registry import Section
from kdnas.training.supernet.policies import ShrinkingSettings


def once_of_images(name: str) -> AliasChoices:
    """Return what a count of samples is called in a study: `NAME_samples`; earlier versions called it `NAME_images`."""
    return AliasChoices(f"{name}_samples", f"{name}_images")


class SupernetSettings(Section):
    """What a supernet's training has in addition to the recipe of a student's."""

    shrinking: ShrinkingSettings = Field(default_factory=ShrinkingSettings)
    in_place: bool = True
    """In-place distillation: where a step has the largest subnet, the others learn from it instead of the teacher."""
    resolutions: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = ()
    """Sizes that samples may be brought to, an image's side or a text's length, up to the data's; empty: it alone."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Augmented views of the samples until the first comes again; the teacher is asked about each once. A supernet's
    training takes many: where the teacher is expensive, a few will do. None: none comes again."""
    recalibration_samples: Annotated[int, Field(ge=2, validation_alias=once_of_images("recalibration"))] = 512
    """Training samples that the batch-norm statistics of a scored subnet are estimated on."""
    check_samples: Annotated[int, Field(ge=2, validation_alias=once_of_images("check"))] = 1000
    """Validation samples that subnets are scored on during the training, at most; fewer where the budget is small."""
