"""The seam between kinds of work: what every student, teacher and loss must know of the data's shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

_LEAST_HEIGHT = 4


@dataclass(frozen=True)
class ImageTask:
    """Image classification. `input_shape` is (channels, height, width) in pixels."""

    input_shape: tuple[int, int, int]
    num_classes: int

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.input_shape[1:]

    def at_height(self, side: int) -> ImageTask:
        """Return the task of the same images resized to `side` pixels high, their width in proportion."""
        channels, height, width = self.input_shape
        return replace(self, input_shape=(channels, side, max(1, round(width * side / height))))

    def at_resolution(self, fraction: float) -> ImageTask:
        """Return the task at this share, in (0, 1], of height and width: whole pixels, at least 4 high where it was."""
        height = self.input_shape[1]
        return self.at_height(min(height, max(_LEAST_HEIGHT, round(fraction * height))))
