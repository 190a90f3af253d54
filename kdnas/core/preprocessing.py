"""What is done to a sample before a network gets it, as data: every export carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kdnas.core.ruling import Rule


class _Plain:
    """A record of plain fields."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Preprocessing(_Plain):
    """From a picture file to a network's input, in the order of the fields, and from its answers to names.

    `kdnas.picture` does what comes before the normalisation.
    """

    size: tuple[int, int]
    """Height and width in pixels."""
    colour: Literal["RGB", "greyscale"]
    """The order of the channels."""
    channel_mean: tuple[float, ...]
    """Of pixels in 0..255; the network takes (pixel - channel_mean) / channel_std, channels first."""
    channel_std: tuple[float, ...]
    class_names: tuple[str, ...]
    """In the order of the network's answers."""
    orientation: Literal["upright"] = "upright"
    """By the picture's EXIF orientation."""
    background: str = "white"
    """The colour behind what is transparent."""
    crop: Literal["none"] = "none"
    resize: Literal["bilinear"] = "bilinear"
    """Pillow's, antialiased where it makes a picture smaller."""
    aspect: Literal["stretched"] = "stretched"
    """The whole picture is resized to `size`; its aspect ratio is not kept."""
    from_pictures: bool = True
    """Whether the training images were read so; else they came as arrays, and how those were resized is not known."""
    repeat: int = 1
    """Into how many channels each of the picture's is copied."""
    network_size: tuple[int, int] | None = None
    """Height and width that the pixels are brought to then, as floats, by torch's antialiased bilinear filter."""
    channel_order: tuple[int, ...] = ()
    """Which normalised channel is the network's first, second, ...; empty: in their own order."""
    tasks: Mapping[str, int] = field(default_factory=dict)
    """Of several tasks: how many of the answers are each one's, in their order; empty: there is one."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form; one task is left unsaid."""
        plain = super().as_dict()
        return {**plain, "tasks": dict(self.tasks)} if self.tasks else {n: v for n, v in plain.items() if n != "tasks"}

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network takes."""
        return (len(self.channel_mean), *(self.network_size or self.size))

    @property
    def words(self) -> str:
        """What is done to a picture up to its normalisation, in a sentence."""
        height, width = self.size
        resized = f"resized to {height} x {width} pixels ({self.resize}, the aspect ratio not kept)"
        done = f"turned upright, {self.colour}, on a {self.background} ground where transparent, {resized}"
        return done if self.from_pictures else f"{done}. {_ARRAYS}"


@dataclass(frozen=True)
class TextPreprocessing(_Plain):
    """From a text to a network's tokens, and from its answers to names."""

    length: int
    """In tokens: longer texts are cut off there."""
    class_names: tuple[str, ...] = ()
    """In the order of the network's answers; of a language model none."""
    tokenizer: tuple[str, ...] = ()
    """Files that make the tokenizer, as Hugging Face's libraries read them."""
    rules: tuple[Rule, ...] = ()
    """What the answers are kept to."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form, of no rules without a word of them."""
        plain = super().as_dict()
        rules = [asdict(rule) for rule in plain.pop("rules")]
        return {**plain, "rules": rules} if rules else plain

    @property
    def words(self) -> str:
        """What is done to a text, in a sentence."""
        return f"cut off after {self.length} tokens"


@dataclass(frozen=True)
class OwnPreprocessing(_Plain):
    """From samples of a user's own kind of work to a network's input: what the entrance of that task does."""

    task: str
    """Its name."""
    class_names: tuple[str, ...] = ()
    """In the order of the network's answers; empty where these have no names."""

    @property
    def words(self) -> str:
        """What is done to a sample, in a sentence."""
        return f"as the data set has them, behind the entrance of the task {self.task}"


_ARRAYS = "The training images came as arrays: how their pictures were resized is not recorded"
