"""student.onnx: the whole student for any batch and any length of text, compared in ONNX Runtime; and its script.

Shapes: B samples, C channels, H and W height and width, T tokens, K classes, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from kdnas.errors import ConfigError, ExportError, Problem
from kdnas.exporters import EXPORTERS, TrainedStudent, Written
from kdnas.exporters._predict import LOADERS, check_predict, write_predict
from kdnas.exporters._probe import as_fed, plain_copy, probe_inputs, reference_logits
from kdnas.nn.onnx_program import EXTRA, REQUIRES, onnx_model

FILE = "student.onnx"
BATCH_SIZES = (1, 3, 17)


@EXPORTERS.register
def onnx(
    student: TrainedStudent, folder: Path, *, tolerance: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-4
) -> Written:
    """ONNX with a dynamic batch and the normalisation inside, checked in ONNX Runtime; with a script that runs it.

    Its input `pixels` is float32 [B, C, H, W] in 0..255, its output `logits` float32 [B, K]; tokens are int64 [B, T],
    for any T that the network takes. `tolerance` bounds the largest difference from PyTorch, as a share of the largest
    logit (at least 1).
    """
    missing = [package for package in REQUIRES if importlib.util.find_spec(package) is None]
    if missing:
        what = f"needs {', '.join(missing)}: pip install 'kdnas[{EXTRA}]'"
        raise ConfigError(Problem("format onnx", what))
    path = folder / FILE
    _write(student, path)
    _check(student, path, tolerance)
    names = write_predict(student, folder)
    check_predict(student, folder, LOADERS[FILE])
    return Written((FILE, *names))


def _write(student: TrainedStudent, path: Path) -> None:
    import onnx as onnx_package

    examples = {
        taken.name: as_fed(example)
        for taken, example in zip(student.spec.inputs, probe_inputs(student.spec, 2), strict=True)
    }
    lengths = any(taken.kind in ("tokens", "mask") for taken in student.spec.inputs)
    model = onnx_model(plain_copy(student.module), examples, dynamic_length=lengths)
    model.doc_string = "Inputs: pixels 0..255 as float32, normalisation inside; tokens as int64. Output: logits."
    values = {
        "arch_id": student.arch.arch_id,
        "arch": student.arch.canonical_json,
        "class_names": json.dumps(student.preprocessing.class_names),
        "preprocessing": json.dumps(student.preprocessing.as_dict()),
    }
    onnx_package.helper.set_model_props(model, values)
    onnx_package.save_model(model, path)


def _check(student: TrainedStudent, path: Path, tolerance: float) -> None:
    """Raise ExportError unless ONNX Runtime gives PyTorch's outputs, within `tolerance`, at three batch sizes.

    Text comes at three lengths, too.
    """
    import onnx as onnx_package
    import onnxruntime

    onnx_package.checker.check_model(onnx_package.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    whole = student.spec.size
    for size, length in zip(BATCH_SIZES, (whole, max(whole // 2, 1), max(whole // 3, 1)), strict=True):
        inputs = probe_inputs(student.spec, size, seed=size, size=length)
        reference = reference_logits(student, *inputs)
        fed = {taken.name: as_fed(probe).numpy() for taken, probe in zip(student.spec.inputs, inputs, strict=True)}
        try:
            (output,) = session.run(["logits"], fed)
        except Exception as error:  # ONNX Runtime raises types of its own, all of them plain exceptions
            raise ExportError(f"{FILE}: ONNX Runtime cannot run it at batch size {size}: {error}") from error
        if output.shape != tuple(reference.shape):
            raise ExportError(
                f"{FILE}: at batch size {size} it gives shape {list(output.shape)}, not {list(reference.shape)}"
            )
        gap = float((torch.from_numpy(output) - reference).abs().max())
        bound = tolerance * max(1.0, float(reference.abs().max()))
        if not gap <= bound:
            raise ExportError(
                f"{FILE}: at batch size {size} its outputs differ from PyTorch's by {gap:.3g} (at most {bound:.3g})"
            )
