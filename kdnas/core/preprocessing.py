"""What is done to a picture before a network sees it, as data: every export carries it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Preprocessing:
    """From a picture file to a network's input, in the order of the fields (`kdnas.picture` does all but the last)."""

    size: tuple[int, int]
    """Height and width in pixels."""
    colour: Literal["RGB", "greyscale"]
    """The order of the channels."""
    channel_mean: tuple[float, ...]
    """Of pixels in 0..255; the network takes (pixel - channel_mean) / channel_std, channels first."""
    channel_std: tuple[float, ...]
    orientation: Literal["upright"] = "upright"
    """By the picture's EXIF orientation."""
    background: str = "white"
    """The colour behind what is transparent."""
    resize: Literal["bilinear"] = "bilinear"
    """Pillow's, antialiased where it makes a picture smaller."""
    aspect: Literal["stretched"] = "stretched"
    """The whole picture is resized to `size`; its aspect ratio is not kept."""
    from_pictures: bool = True
    """Whether the training images were read so; else they came as arrays, and how those were resized is not known."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form."""
        plain = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @property
    def words(self) -> str:
        """What is done, in a sentence."""
        height, width = self.size
        resized = f"resized to {height} x {width} pixels ({self.resize}, the aspect ratio not kept)"
        return f"turned upright, {self.colour}, on a {self.background} ground where transparent, {resized}"
