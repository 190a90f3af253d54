"""The weights file that several formats stand on: student.safetensors, written once a folder and read back."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.exporters._probe import as_fed, plain, plain_copy, probe_inputs, reference_logits

WEIGHTS = "student.safetensors"
_PROBES = 8


def write_weights(student: TrainedStudent, folder: Path) -> Path:
    """Write student.safetensors into `folder`, unless another format of this export has, and return its path.

    Raises ExportError where a network holding only what was written differs from `student.module`.
    """
    path = folder / WEIGHTS
    if path.exists():
        return path
    tensors = {name: tensor.contiguous().clone() for name, tensor in plain_copy(student.network).state_dict().items()}
    path.write_bytes(safetensors.torch.save(tensors, metadata=metadata(student)))
    _check(student, path)
    return path


def metadata(student: TrainedStudent) -> dict[str, str]:
    """Return the text that travels inside the weights file; structured values as JSON."""
    plain = student.preprocessing.as_dict()
    return {
        "format": "pt",
        "arch_id": student.arch.arch_id,
        "arch": student.arch.canonical_json,
        "input_shape": json.dumps(student.spec.inputs[0].shape),
        "preprocessing": json.dumps(plain),
        **{name: json.dumps(plain[name]) for name in ("class_names", "channel_mean", "channel_std") if name in plain},
    }


def logits_from_weights(student: TrainedStudent, path: Path, *inputs: Tensor) -> Tensor:
    """Return the logits for raw `inputs` of the whole student with every weight of its network taken from `path`."""
    module, network = copy.deepcopy((student.module, student.network))
    plain(module)
    for tensor in network.state_dict().values():
        tensor.zero_()
    network.load_state_dict(safetensors.torch.load_file(path))
    with torch.no_grad():
        logits: Tensor = module(*map(as_fed, inputs))
    return logits


def _check(student: TrainedStudent, path: Path) -> None:
    with safetensors.safe_open(path, framework="pt") as written:
        if written.metadata() != metadata(student):
            raise ExportError(f"{WEIGHTS}: its metadata did not read back as written")
    probes = probe_inputs(student.spec, _PROBES)
    if not torch.equal(logits_from_weights(student, path, *probes), reference_logits(student, *probes)):
        raise ExportError(f"{WEIGHTS}: the weights read back do not give the student's outputs")
