"""student.onnx: the whole student for any batch and any length of text, compared in ONNX Runtime; and its script.

Shapes: B samples, C channels, H and W height and width, T tokens, K classes, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written, check_packages
from kdnas.exporters._labelling import LOADERS
from kdnas.exporters._onnx import check_runtime, write_onnx
from kdnas.exporters._predict import check_predict, write_predict
from kdnas.nn import onnx_program

REQUIRES, EXTRA = onnx_program.REQUIRES, onnx_program.EXTRA
FILE = "student.onnx"


@EXPORTERS.register
def onnx(
    student: TrainedStudent, folder: Path, *, tolerance: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-4
) -> Written:
    """ONNX with a dynamic batch and the normalisation inside, checked in ONNX Runtime; with a script that runs it.

    Its input `pixels` is float32 [B, C, H, W] in 0..255, its output `logits` float32 [B, K]; of several tasks those of
    each are outputs of their own, too, by its name. Tokens are int64 [B, T], for any T that the network takes.
    `tolerance` bounds the largest difference from PyTorch, as a share of the largest logit (at least 1).
    """
    check_packages("onnx")
    import onnx as onnx_package
    import onnxruntime

    path = folder / FILE
    write_onnx(student, path)
    onnx_package.checker.check_model(onnx_package.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(fed: dict[str, np.ndarray]) -> torch.Tensor:
        try:
            return torch.from_numpy(session.run(["logits"], fed)[0])
        except Exception as error:  # ONNX Runtime raises types of its own, all of them plain exceptions
            raise ExportError(f"{FILE}: ONNX Runtime cannot run it: {error}") from error

    check_runtime(student, FILE, run, tolerance)
    names = write_predict(student, folder)
    check_predict(student, folder, LOADERS[FILE])
    return Written((FILE, *names))
