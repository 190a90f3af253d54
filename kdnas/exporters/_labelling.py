"""What predict.py is for, whatever it labels: the networks that it asks, and answers that are the student's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdnas.errors import ExportError
from kdnas.exporters._alone import run_alone

SCRIPT = "predict.py"
_TOLERANCE = 1e-4
"""The largest difference of a probability, and of a number as a share of it."""


@dataclass(frozen=True)
class Loader:
    """What predict.py holds for one kind of network."""

    file: str
    """The network's, by which it is known to be there."""
    function: str
    needs: str
    text: str
    """Of `function`, which takes nothing and returns a function of raw samples that gives logits."""
    unneeded: tuple[str, ...] = ()
    """Packages of kdnas that it does without."""


def printed_alone(script: Path, loader: Loader, *arguments: object, folder: Path, classes: int) -> str:
    """Return what predict.py, run alone in `folder` with the loader's network, prints: all `classes` as JSON."""
    options = ["--json", "--top", classes, "--network", loader.file]
    absent = loader.unneeded
    return run_alone(script, *options, "--", *arguments, folder=folder, absent=absent, threads="torch" not in absent)


def check_printed(printed: str, loader: Loader, names: Sequence[str], expected: Iterable[Sequence[float]]) -> None:
    """Raise ExportError unless the lines `printed` give each class the probability `expected` of it."""
    for line, wanted in zip(printed.splitlines(), expected, strict=True):
        found = {entry["class"]: entry["probability"] for entry in json.loads(line)["classes"]}
        for name, probability in zip(names, wanted, strict=True):
            if not abs(found.get(name, -1.0) - probability) <= _TOLERANCE:
                raise ExportError(
                    f"{SCRIPT}: for {name} {loader.file} gives {found.get(name)}, the student {probability}"
                )


def check_printed_values(printed: str, loader: Loader, expected: Iterable[float]) -> None:
    """Raise ExportError unless the lines `printed` contain the numbers `expected`."""
    for line, wanted in zip(printed.splitlines(), expected, strict=True):
        value = json.loads(line)["value"]
        if not abs(value - wanted) <= _TOLERANCE * max(1.0, abs(wanted)):
            raise ExportError(f"{SCRIPT}: {loader.file} gives {value}, the student {wanted}")
