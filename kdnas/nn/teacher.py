"""The fixed network that students learn from, whatever source it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.data import Data, ImageData
from kdnas.core.task import Head
from kdnas.nn.origin import Origin


@dataclass(frozen=True)
class Teacher:
    """A fixed network: eval mode, no gradients.

    `module` takes the data's plain samples, images [B, C, H, W] as floats in 0..255 (normalisation and resizing are
    inside), and gives logits [B, K]. `stages` are the dotted names, inside `module`, of the submodules whose outputs
    [B, C, H, W] are the stages; `classifier` that of the linear layer whose input is the embedding, None where there is
    no such layer. `fingerprint` is a hash of the weights and everything else that is known to decide the outputs;
    `notes` list what was adapted. `arch` is that of a teacher which is a member of a student family, so that students
    can inherit its weights. `answers` are a sketch (`kdnas.core.answers`) of its outputs for a few fixed samples of the
    data: they show what no hash of files does, such as edited code or an upgraded library. `outputs` is what its
    network gives; of rules, which classes are allowed (`kdnas.nn.ruling`).
    """

    name: str
    module: nn.Module
    stages: tuple[str, ...]
    classifier: str | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    arch: Arch | None = None
    answers: tuple[float, ...] = ()
    outputs: Literal["logits", "probabilities", "rules"] = "logits"
    origin: Origin | None = None
    """How its network is made without kdnas; None where that is not known."""
    data: Data | None = None
    """What it is given, a sample for each of the study's (`kdnas.core.pairing`); None: the study's own samples."""
    task: str = ""
    """The one that it answers of the several that students do; empty: all that they are asked."""

    def given(self, data: Data) -> Data:
        """Return what it is given where students are given `data`, with the labels that it answers."""
        if self.task and isinstance(data, ImageData):
            return data.asking(self.task)
        return self.data or data

    def heads(self, data: Data) -> tuple[Head, ...]:
        """Return the tasks that its logits answer, where students of `data` do several."""
        return (Head(self.task, self.given(data).task.outputs),) if self.task else data.task.heads


Teaching: TypeAlias = Teacher | Mapping[str, Teacher] | None
"""Who teaches: one, several by name, or nobody."""
ONE = "teacher"
"""What the one teacher is called where nobody names it."""


def by_name(teaching: Teaching) -> Mapping[str, Teacher]:
    """Return the teachers by name."""
    if isinstance(teaching, Teacher):
        return {ONE: teaching}
    return teaching or {}


def fingerprint_of(teaching: Teaching) -> str | dict[str, str] | None:
    """Return the hash of the one teacher, those of several by name, or None, for a training's identity."""
    teachers = by_name(teaching)
    if len(teachers) == 1:
        return next(iter(teachers.values())).fingerprint
    return {name: teacher.fingerprint for name, teacher in teachers.items()} or None


_FURTHER = "teachers."
"""Before the name of a teacher after the first, where hashes are listed by teacher."""


def fingerprints_of(teachers: Mapping[str, Teacher]) -> dict[str, str]:
    """Return the hashes of the teachers: `teacher` the first one's, `teachers.NAME` that of another."""
    keys = ("teacher" if not place else f"{_FURTHER}{name}" for place, name in enumerate(teachers))
    return {key: teacher.fingerprint for key, teacher in zip(keys, teachers.values(), strict=True)}


def further_of(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes of the teachers after the first by their names, out of all hashes of a run."""
    return {key.removeprefix(_FURTHER): value for key, value in fingerprints.items() if key.startswith(_FURTHER)}
