"""The seam between kinds of work: what every student, teacher and loss must know of the data's shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageTask:
    """Image classification. `input_shape` is (channels, height, width) in pixels."""

    input_shape: tuple[int, int, int]
    num_classes: int
