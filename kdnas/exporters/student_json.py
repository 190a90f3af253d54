"""student.json: what the student is, what it takes and gives, and what was measured of it, for machines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from kdnas.checksums import file_sha256
from kdnas.core.arch import Arch
from kdnas.core.preprocessing import Preprocessing
from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written
from kdnas.exporters._code import write_with_weights
from kdnas.exporters._probe import probe_inputs, reference_logits
from kdnas.exporters._weights import logits_from_weights, write_weights
from kdnas.nn.tracing import parameter_count

FILE = "student.json"


@EXPORTERS.register
def student_json(student: TrainedStudent, folder: Path) -> Written:
    """The student as JSON: arch, input, classes, normalisation, measured numbers, and the hash of its weights file."""
    weights = write_weights(student, folder)
    text = json.dumps(_record(student, weights), indent=2, allow_nan=False) + "\n"
    path = folder / FILE
    path.write_text(text, encoding="utf-8")
    _check(student, path, weights)
    return write_with_weights(student, folder, FILE, weights.name)


def _record(student: TrainedStudent, weights: Path) -> dict[str, Any]:
    return {
        "format": "kdnas-student",
        "format_version": 1,
        "arch_id": student.arch.arch_id,
        "arch": json.loads(student.arch.canonical_json),
        **({} if isinstance(student.preprocessing, Preprocessing) else {"task": dataclasses.asdict(student.spec)}),
        "input": _input(student),
        "output": "logits",
        "classes": list(student.preprocessing.class_names),
        "params": parameter_count(student.network),
        "weights": {"file": weights.name, "sha256": file_sha256(weights)},
        "measured": student.card.as_dict(student.spec.score.name),
    }


def _input(student: TrainedStudent) -> dict[str, Any]:
    preprocessing = student.preprocessing
    plain = preprocessing.as_dict()
    if not isinstance(preprocessing, Preprocessing):
        return {"shape": list(student.spec.inputs[0].shape), "preprocessing": plain}
    return {
        "shape": list(student.spec.image_shape),
        "layout": "channels, height, width",
        "pixel_range": [0, 255],
        "normalisation": "(pixel - channel_mean) / channel_std",
        "channel_mean": plain["channel_mean"],
        "channel_std": plain["channel_std"],
        "preprocessing": plain,
    }


def _check(student: TrainedStudent, path: Path, weights: Path) -> None:
    """Raise ExportError unless the file reads back, and the weights that it names give the student's outputs."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if Arch.from_json(record["arch"]) != student.arch or record["arch_id"] != student.arch.arch_id:
        raise ExportError(f"{FILE}: the arch did not read back as written")
    if record["classes"] and len(record["classes"]) != student.spec.outputs:
        raise ExportError(
            f"{FILE}: {len(record['classes'])} class names for a student of {student.spec.outputs} classes"
        )
    if record["input"]["preprocessing"] != student.preprocessing.as_dict():
        raise ExportError(f"{FILE}: the preprocessing did not read back as written")
    probes = probe_inputs(student.spec, 4)
    if not torch.equal(logits_from_weights(student, weights, *probes), reference_logits(student, *probes)):
        raise ExportError(f"{FILE}: the weights it describes do not give the student's outputs")
