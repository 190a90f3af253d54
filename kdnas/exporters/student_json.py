"""student.json: what the student is, what it takes and gives, and what was measured of it, for machines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from kdnas.core.arch import Arch
from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent
from kdnas.exporters._probe import probe_images, reference_logits
from kdnas.exporters._weights import file_sha256, logits_from_weights, write_weights
from kdnas.nn.tracing import parameter_count

FILE = "student.json"


@EXPORTERS.register
def student_json(student: TrainedStudent, folder: Path) -> list[str]:
    """The student as JSON: arch, input, classes, normalisation, measured numbers, and the hash of its weights file."""
    weights = write_weights(student, folder)
    text = json.dumps(_record(student, weights), indent=2, allow_nan=False) + "\n"
    path = folder / FILE
    path.write_text(text, encoding="utf-8")
    _check(student, path, weights)
    return [FILE, weights.name]


def _record(student: TrainedStudent, weights: Path) -> dict[str, Any]:
    return {
        "format": "kdnas-student",
        "format_version": 1,
        "arch_id": student.arch.arch_id,
        "arch": json.loads(student.arch.canonical_json),
        "input": {
            "shape": list(student.task.image_shape),
            "layout": "channels, height, width",
            "pixel_range": [0, 255],
            "normalisation": "(pixel - channel_mean) / channel_std",
            "channel_mean": list(student.channel_mean),
            "channel_std": list(student.channel_std),
            "preprocessing": student.preprocessing.as_dict(),
        },
        "output": "logits",
        "classes": list(student.class_names),
        "params": parameter_count(student.module),
        "weights": {"file": weights.name, "sha256": file_sha256(weights)},
        "measured": dict(student.card),
    }


def _check(student: TrainedStudent, path: Path, weights: Path) -> None:
    """Raise ExportError unless the file alone, with the weights it names, gives the student's outputs."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if Arch.from_json(record["arch"]) != student.arch or record["arch_id"] != student.arch.arch_id:
        raise ExportError(f"{FILE}: the arch did not read back as written")
    if len(record["classes"]) != student.task.outputs:
        raise ExportError(
            f"{FILE}: {len(record['classes'])} class names for a student of {student.task.outputs} classes"
        )
    described = dataclasses.replace(
        student,
        channel_mean=tuple(record["input"]["channel_mean"]),
        channel_std=tuple(record["input"]["channel_std"]),
    )
    pixels = probe_images(student.task, 4)
    if not torch.equal(logits_from_weights(described, weights, pixels), reference_logits(student, pixels)):
        raise ExportError(f"{FILE}: the normalisation and weights it describes do not give the student's outputs")
