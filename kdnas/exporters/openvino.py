"""student.xml and student.bin: the whole student in OpenVINO's form, compared in its runtime; and its script.

Shapes: B samples, C channels, H and W height and width, T tokens, K classes, V vocabulary.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written, check_packages
from kdnas.exporters._labelling import LOADERS
from kdnas.exporters._onnx import check_runtime, write_onnx
from kdnas.exporters._predict import check_predict, write_predict

REQUIRES = ("openvino", "onnx", "onnxscript")
EXTRA = "openvino"
FILE, WEIGHTS = "student.xml", "student.bin"


@EXPORTERS.register
def openvino(
    student: TrainedStudent, folder: Path, *, tolerance: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-4
) -> Written:
    """OpenVINO with a dynamic batch and the normalisation inside, float32, checked in its runtime; with a script.

    Inputs, outputs and `tolerance` are those of the format onnx.
    """
    check_packages("openvino")
    import openvino as library

    with tempfile.TemporaryDirectory(prefix="kdnas-export-") as scratch:
        write_onnx(student, Path(scratch) / "student.onnx")
        library.save_model(library.convert_model(Path(scratch) / "student.onnx"), folder / FILE, compress_to_fp16=False)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}  # a CPU with bfloat16 would take that
    compiled: Any = library.Core().compile_model(folder / FILE, "CPU", settings)

    def run(fed: dict[str, np.ndarray]) -> torch.Tensor:
        try:
            return torch.from_numpy(compiled(fed)["logits"].copy())
        except RuntimeError as error:
            raise ExportError(f"{FILE}: OpenVINO cannot run it: {error}") from error

    check_runtime(student, FILE, run, tolerance)
    names = write_predict(student, folder)
    check_predict(student, folder, LOADERS[FILE])
    return Written((FILE, WEIGHTS, *names))
