"""Exporters: a trained student in the formats that training and serving pipelines read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.preprocessing import Preprocessing
from kdnas.core.task import TaskSpec
from kdnas.registry import Registry


@dataclass(frozen=True)
class TrainedStudent:
    """Everything an exporter may write. `module` is in eval mode and takes normalised images [B, C, H, W].

    `channel_mean` and `channel_std` (0-255 scale) are the normalisation it was trained with; `source` is the
    self-contained Python of the network; `recipe` the whole of train.yaml; `card` the measured numbers of the model
    card.
    """

    arch: Arch
    task: TaskSpec
    module: nn.Module
    source: str
    class_names: tuple[str, ...]
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    recipe: Mapping[str, Any]
    card: Mapping[str, Any]
    background: str = "white"
    """The colour behind what is transparent in pictures."""
    from_pictures: bool = True
    """Whether the training images were read from pictures by kdnas."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to a picture before the network sees it."""
        channels, height, width = self.task.image_shape
        return Preprocessing(
            size=(height, width),
            colour="greyscale" if channels == 1 else "RGB",
            channel_mean=tuple(self.channel_mean),
            channel_std=tuple(self.channel_std),
            background=self.background,
            from_pictures=self.from_pictures,
        )


EXPORTERS: Registry[Callable[..., list[str]]] = Registry("export format", __name__)
"""Members: `function(student: TrainedStudent, folder: Path, *, options) -> list of file names written`.

`folder` is a fresh scratch folder: it becomes the user's only when every format has been checked against `module`.
Raise ExportError where the written files do not reproduce the student's outputs."""
