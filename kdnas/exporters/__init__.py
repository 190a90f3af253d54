"""Exporters: a trained student in the formats that training and serving pipelines read.

Shapes: B samples, C channels, H and W height and width, T tokens, K classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.preprocessing import Preprocessing, TextPreprocessing
from kdnas.core.task import TaskSpec
from kdnas.nn.origin import Cut
from kdnas.registry import Registry


@dataclass(frozen=True)
class TrainedStudent:
    """Everything an exporter may write. The two modules are in eval mode and share their weights."""

    arch: Arch
    spec: TaskSpec
    module: nn.Module
    """The whole student: raw inputs in the order of `spec.inputs` (images as floats in 0..255) to logits."""
    network: nn.Module
    """What is inside it, behind the normalisation: its weights are the student's."""
    source: str | None
    """Python that needs no kdnas and defines `build_student()`, which returns `network` with other weights.

    None where there is only what `cut` tells.
    """
    preprocessing: Preprocessing | TextPreprocessing
    """From a picture file or a text to what `network` takes."""
    recipe: Mapping[str, Any]
    """The whole of train.yaml."""
    card: Mapping[str, Any]
    """The measured numbers of the model card."""
    cut: Cut | None = None
    """What `network` was cut from; None where it is a family's own."""


@dataclass(frozen=True)
class Written:
    """What an exporter wrote: names of files in its folder, and what the user should know of them."""

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


EXPORTERS: Registry[Callable[..., Written]] = Registry("export format", __name__, "student", "folder")
"""Members: `function(student: TrainedStudent, folder: Path, *, options) -> Written`.

`folder` is a fresh scratch folder: it becomes the user's only when every format has been checked against `module`.
Raise ExportError where the written files do not reproduce the student's outputs."""
