"""The fixed network that students learn from, whatever source it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from kdnas.core.arch import Arch
from kdnas.nn.origin import Origin


@dataclass(frozen=True)
class Teacher:
    """A fixed network: eval mode, no gradients.

    `module` takes the data's plain samples, images [B, C, H, W] as floats in 0..255 (normalisation and resizing are
    inside), and gives logits [B, K]. `stages` are the dotted names, inside `module`, of the submodules whose outputs
    [B, C, H, W] are the stages; `classifier` that of the linear layer whose input is the embedding, None where there is
    no such layer.
    `fingerprint` is a hash of the weights and everything else that is known to decide the outputs; `notes` say what was
    adapted. `arch` is that of a teacher which is a member of a student family, so that students can inherit its
    weights. `answers` are a sketch (`kdnas.core.answers`) of what it says to a few fixed samples of the data: they
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
    origin: Origin | None = None
    """How its network is made without kdnas; None where that is not known."""
