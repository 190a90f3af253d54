"""The student as an ONNX model, and the comparison of a runtime's answers with PyTorch's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from kdnas.core.preprocessing import Preprocessing
from kdnas.errors import ExportError
from kdnas.exporters import TrainedStudent
from kdnas.exporters._probe import as_fed, plain_copy, probe_inputs, reference_logits
from kdnas.nn.onnx_program import onnx_model

BATCH_SIZES = (1, 3, 17)


def write_onnx(student: TrainedStudent, path: Path) -> None:
    """Write the whole student as ONNX with a dynamic batch, and of text a dynamic length."""
    import onnx as onnx_package

    examples = {
        taken.name: as_fed(example)
        for taken, example in zip(student.spec.inputs, probe_inputs(student.spec, 2), strict=True)
    }
    lengths = any(taken.kind in ("tokens", "mask") for taken in student.spec.inputs)
    parts = {head.name: head.places for head in student.spec.heads}
    model = onnx_model(plain_copy(student.module), examples, dynamic_length=lengths, parts=parts)
    by_task = f"; those of each task: {', '.join(parts)}" if parts else ""
    model.doc_string = (
        f"Inputs: pixels 0..255 as float32, normalisation inside; tokens as int64. Output: logits{by_task}."
    )
    values = {
        "arch_id": student.arch.arch_id,
        "arch": student.arch.canonical_json,
        "class_names": json.dumps(student.preprocessing.class_names),
        "preprocessing": json.dumps(student.preprocessing.as_dict()),
    }
    if not isinstance(student.preprocessing, Preprocessing):
        values["task"] = json.dumps(dataclasses.asdict(student.spec))
    onnx_package.helper.set_model_props(model, values)
    onnx_package.save_model(model, path)


def check_runtime(
    student: TrainedStudent, file: str, run: Callable[[dict[str, np.ndarray]], Tensor], tolerance: float
) -> None:
    """Raise ExportError unless `run` gives PyTorch's logits, within `tolerance`, at three batch sizes and lengths.

    `tolerance` is a share of the largest logit (at least 1).
    """
    whole = student.spec.size
    for size, length in zip(BATCH_SIZES, (whole, max(whole // 2, 1), max(whole // 3, 1)), strict=True):
        inputs = probe_inputs(student.spec, size, seed=size, size=length)
        reference = reference_logits(student, *inputs)
        output = run({taken.name: as_fed(p).numpy() for taken, p in zip(student.spec.inputs, inputs, strict=True)})
        at = f"{file}: at batch size {size}"
        if output.shape != reference.shape:
            raise ExportError(f"{at} it gives shape {list(output.shape)}, not {list(reference.shape)}")
        gap, bound = float((output - reference).abs().max()), tolerance * max(1.0, float(reference.abs().max()))
        if not gap <= bound:
            raise ExportError(f"{at} its outputs differ from PyTorch's by {gap:.3g} (at most {bound:.3g})")
