"""Exporters: a trained student in the formats that training and serving pipelines read.

Shapes: B samples, C channels, H and W height and width, T tokens, K classes, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdnas.core.arch import Arch
from kdnas.core.card import StudentCard
from kdnas.core.preprocessing import OwnPreprocessing, Preprocessing, TextPreprocessing
from kdnas.core.task import TaskSpec
from kdnas.errors import ConfigError, Problem
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

    None where there is only `cut`.
    """
    preprocessing: Preprocessing | TextPreprocessing | OwnPreprocessing
    """From a picture file, a text or a sample of the user's own kind to what `network` takes."""
    recipe: Mapping[str, Any]
    """The whole of train.yaml."""
    card: StudentCard
    """The measured numbers of the model card."""
    cut: Cut | None = None
    """What `network` was cut from; None where it is a family's own."""
    tokenizer: Path | None = None
    """The folder of the tokenizer that read the texts; None where there are none."""


@dataclass(frozen=True)
class Written:
    """What an exporter wrote: names of files in its folder, and what the user should know of them."""

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


EXPORTERS: Registry[Callable[..., Written]] = Registry("export format", __name__, "student", "folder")
"""Members: `function(student: TrainedStudent, folder: Path, *, options) -> Written`.

`folder` is a fresh scratch folder: it becomes the user's only when every format has been checked against `module`.
Raise ExportError where the written files do not reproduce the student's outputs."""


def lacking_packages(name: str) -> str:
    """Return what the format `name` needs that is not installed, in words; empty where all is there.

    A member's file names its packages in REQUIRES, and the extra of kdnas that brings them in EXTRA.
    """
    module = sys.modules[EXPORTERS.get(name).__module__]
    absent = [package for package in getattr(module, "REQUIRES", ()) if importlib.util.find_spec(package) is None]
    return f"needs {', '.join(absent)}: pip install 'kdnas[{module.EXTRA}]'" if absent else ""


def check_packages(name: str) -> None:
    """Raise ConfigError where what the format `name` needs is not installed."""
    if what := lacking_packages(name):
        raise ConfigError(Problem(f"format {name}", what))


def may_lack(name: str) -> bool:
    """Whether some students do not have the format `name`, which its member's file decides by a function `why_not`."""
    return hasattr(sys.modules[EXPORTERS.get(name).__module__], "why_not")


def lacking_formats(formats: Sequence[str], cut: Cut | None, network: nn.Module) -> dict[str, str]:
    """Return those of `formats` that a student does not have, with the reason; `network` need not be trained.

    A member's file defines this by a function `why_not(cut, network)`, which gives an empty text where it has it.
    """
    lacking = {}
    for name in filter(may_lack, formats):
        if reason := sys.modules[EXPORTERS.get(name).__module__].why_not(cut, network):
            lacking[name] = reason
    return lacking
