"""The weights file that several formats stand on: student.safetensors, written once a folder and read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.exporters._probe import pixels_to_logits, plain_copy, probe_images, reference_logits

WEIGHTS = "student.safetensors"
_PROBES = 8


def write_weights(student: TrainedStudent, folder: Path) -> Path:
    """Write student.safetensors into `folder`, unless another format of this export has, and return its path.

    Raises ExportError where a network holding only what was written differs from `student.module`.
    """
    path = folder / WEIGHTS
    if path.exists():
        return path
    tensors = {name: tensor.contiguous().clone() for name, tensor in plain_copy(student.module).state_dict().items()}
    path.write_bytes(safetensors.torch.save(tensors, metadata=metadata(student)))
    _check(student, path)
    return path


def metadata(student: TrainedStudent) -> dict[str, str]:
    """Return the text that travels inside the weights file; structured values as JSON."""
    return {
        "format": "pt",
        "arch_id": student.arch.arch_id,
        "arch": student.arch.canonical_json,
        "input_shape": json.dumps(student.task.image_shape),
        "class_names": json.dumps(student.class_names),
        "channel_mean": json.dumps(student.channel_mean),
        "channel_std": json.dumps(student.channel_std),
        "preprocessing": json.dumps(student.preprocessing.as_dict()),
    }


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def logits_from_weights(student: TrainedStudent, path: Path, pixels: Tensor) -> Tensor:
    """Return the logits [B, K] for raw `pixels` of the student's network with every weight taken from `path`."""
    module = pixels_to_logits(student)
    for tensor in module.network.state_dict().values():
        tensor.zero_()
    module.network.load_state_dict(safetensors.torch.load_file(path))
    with torch.no_grad():
        logits: Tensor = module(pixels.float())
    return logits


def _check(student: TrainedStudent, path: Path) -> None:
    with safetensors.safe_open(path, framework="pt") as written:
        if written.metadata() != metadata(student):
            raise ExportError(f"{WEIGHTS}: its metadata did not read back as written")
    pixels = probe_images(student.task, _PROBES)
    if not torch.equal(logits_from_weights(student, path, pixels), reference_logits(student, pixels)):
        raise ExportError(f"{WEIGHTS}: the weights read back do not give the student's outputs")
