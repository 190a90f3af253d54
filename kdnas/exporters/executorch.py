"""student.pte: the whole student as a program of ExecuTorch, for telephones and boards, compared in its runtime.

Shapes: B samples, C channels, H and W height and width, T tokens, K classes, V vocabulary.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written, check_packages
from kdnas.exporters._labelling import LOADERS
from kdnas.exporters._onnx import check_runtime
from kdnas.exporters._predict import check_predict, write_predict
from kdnas.exporters._probe import as_fed, plain_copy, probe_inputs
from kdnas.nn.onnx_program import dynamic_shapes

REQUIRES = ("executorch",)
EXTRA = "executorch"
FILE = "student.pte"
MOST = 64
"""Samples of a batch: a program plans its memory for the most."""


@EXPORTERS.register
def executorch(
    student: TrainedStudent, folder: Path, *, tolerance: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-4
) -> Written:
    """ExecuTorch by XNNPACK, for up to 64 samples at once, float32, the normalisation inside, checked in its runtime.

    Inputs, output and `tolerance` are those of the format onnx, in order in the place of names; with a script.
    """
    check_packages("executorch")
    with _quiet():
        program = _program(student)
    (folder / FILE).write_bytes(program)
    from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(folder / FILE)  # which a method needs as long as it is called
    method: Any = loaded.load_method("forward")

    def run(fed: dict[str, np.ndarray]) -> torch.Tensor:
        try:
            logits: torch.Tensor = method.execute([torch.from_numpy(part) for part in fed.values()])[0]
        except RuntimeError as error:
            raise ExportError(f"{FILE}: ExecuTorch cannot run it: {error}") from error
        return logits.clone()  # its memory is the next call's

    check_runtime(student, FILE, run, tolerance)
    names = write_predict(student, folder)
    check_predict(student, folder, LOADERS[FILE])
    return Written((FILE, *names))


def _program(student: TrainedStudent) -> bytes:
    """Return the student as a program. Raises ExportError where it cannot be one."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module = plain_copy(student.module)
    # As many as there may be: a convolution read off fewer, bounded so, takes no more than 15.
    examples = tuple(as_fed(example) for example in probe_inputs(student.spec, MOST))
    dims: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=MOST)}
    if any(taken.kind in ("tokens", "mask") for taken in student.spec.inputs):
        dims[1] = torch.export.Dim("length", min=1, max=student.spec.size)
    shapes = dynamic_shapes(module, dims, len(examples))
    try:
        exported = torch.export.export(module, examples, dynamic_shapes=shapes)
        return bytes(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    except Exception as error:  # torch.export and ExecuTorch raise types of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"{FILE}: it is no program of ExecuTorch: {first[:300]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's lines and warnings from the user's screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
