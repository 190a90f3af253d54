"""Teacher sources: where the fixed source network comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import ImageData
from kdnas.registry import Registry


@dataclass(frozen=True)
class Teacher:
    """A fixed network: eval mode, no gradients.

    `module` takes raw images [B, C, H, W] as floats in 0..255 at the data's own size (normalisation and resizing are
    inside) and gives logits [B, K]. `stages` are the dotted names, inside `module`, of the submodules whose outputs
    [B, C, H, W] are the stages; `classifier` that of the linear layer whose input is the embedding, None where there is
    no such layer.
    `fingerprint` is a hash of the weights and everything else that is known to decide the outputs; `notes` say what was
    adapted. `arch` is that of a teacher which is a member of a student family, so that students can inherit its
    weights. `answers` are a sketch (`kdnas.core.answers`) of what it says to a few fixed images of the data: they
    tell what no hash of files does, such as mended code or an upgraded library. `outputs` is what its network gives.
    """

    name: str
    module: nn.Module
    stages: tuple[str, ...]
    classifier: str | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    arch: Arch | None = None
    answers: tuple[float, ...] = ()
    outputs: Literal["logits", "probabilities"] = "logits"


@dataclass(frozen=True)
class TeacherContext:
    """What a teacher source may use.

    `train_student(family, choices, training, say)` trains a student family's member with cross entropy and returns the
    module taking normalised images, with its arch; it is handed down from the training layer.
    """

    data: ImageData
    data_root: Path
    device: torch.device
    train_student: Callable[[str, Mapping[str, Any], Mapping[str, Any], Callable[[str], None]], tuple[nn.Module, Arch]]
    say: Callable[[str], None] = field(default=lambda line: None)


TEACHERS: Registry[Callable[..., Teacher]] = Registry("teacher", __name__)
"""Members: `function(context: TeacherContext, *, options) -> Teacher`. Raise TeacherError."""
