"""student.safetensors: the weights, with the arch, the classes and the normalisation in its metadata."""

from __future__ import annotations

from pathlib import Path

from kdnas.exporters import EXPORTERS, TrainedStudent, Written
from kdnas.exporters._code import write_with_weights
from kdnas.exporters._weights import write_weights


@EXPORTERS.register
def safetensors(student: TrainedStudent, folder: Path) -> Written:
    """Weights as safetensors, with the arch, classes and normalisation in the metadata, and the code to run them."""
    weights = write_weights(student, folder)
    return write_with_weights(student, folder, weights.name)
