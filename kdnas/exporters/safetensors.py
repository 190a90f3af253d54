"""student.safetensors: the weights, with the arch, the classes and the normalisation in its metadata."""

from __future__ import annotations

from pathlib import Path

from kdnas.exporters import EXPORTERS, TrainedStudent
from kdnas.exporters._weights import write_weights


@EXPORTERS.register
def safetensors(student: TrainedStudent, folder: Path) -> list[str]:
    """Weights as safetensors, with the arch, classes and normalisation in the metadata."""
    return [write_weights(student, folder).name]
