"""student.onnx: the student with its normalisation inside, for any batch size, compared in ONNX Runtime; and a script.

Shapes: B images, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from kdnas.errors import ConfigError, ExportError, Problem
from kdnas.exporters import EXPORTERS, TrainedStudent
from kdnas.exporters._picture_script import picture_source, preparation
from kdnas.exporters._probe import pixels_to_logits, probe_images, reference_logits
from kdnas.nn.onnx_program import EXTRA, REQUIRES, onnx_model

FILE = "student.onnx"
SCRIPT = "predict.py"
BATCH_SIZES = (1, 3, 17)


@EXPORTERS.register
def onnx(
    student: TrainedStudent, folder: Path, *, tolerance: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-4
) -> list[str]:
    """ONNX with a dynamic batch and the normalisation inside, checked in ONNX Runtime; with a script that runs it.

    Its input `pixels` is float32 [B, C, H, W] in 0..255, its output `logits` float32 [B, K]. `tolerance` bounds the
    largest difference from PyTorch, as a share of the largest logit (at least 1).
    """
    missing = [package for package in REQUIRES if importlib.util.find_spec(package) is None]
    if missing:
        what = f"needs {', '.join(missing)}: pip install 'kdnas[{EXTRA}]'"
        raise ConfigError(Problem("format onnx", what))
    path = folder / FILE
    _write(student, path)
    _check(student, path, tolerance)
    (folder / SCRIPT).write_text(script(student), encoding="utf-8")
    return [FILE, SCRIPT]


_SCRIPT_HEAD = '''"""Labels pictures with {file}, image classifier {arch_id}: it needs onnxruntime, numpy and Pillow.

    python {script} photo.jpg          label a picture, or several, or a folder; --help says more
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

INPUT_SHAPE = {input_shape!r}  # channels, height, width
CLASS_NAMES = {class_names!r}
BACKGROUND = {background!r}  # behind what is transparent in a picture
PREPARATION = {preparation!r}
'''

_SCRIPT_MAIN = '''

def main():
    """Label the pictures that are named."""
    import numpy as np
    import onnxruntime

    parser = command_line(Path(__file__).resolve().with_name("student.onnx"))
    arguments = parser.parse_args()
    if not arguments.pictures:
        parser.print_help()
        return
    session = onnxruntime.InferenceSession(str(arguments.weights), providers=["CPUExecutionProvider"])

    def probabilities_of(picture):
        (logits,) = session.run(["logits"], {"pixels": picture[np.newaxis].astype(np.float32)})
        raised = np.exp(logits[0] - logits[0].max())
        return (raised / raised.sum()).tolist()

    files = picture_files(arguments.pictures)
    sys.exit(label(files, arguments.top, arguments.json, probabilities_of) > 0)


if __name__ == "__main__":
    main()
'''


def script(student: TrainedStudent) -> str:
    """Return the text of predict.py, which labels picture files with the ONNX file beside it."""
    head = _SCRIPT_HEAD.format(
        file=FILE,
        script=SCRIPT,
        arch_id=student.arch.arch_id,
        input_shape=student.task.image_shape,
        class_names=tuple(student.class_names),
        background=student.background,
        preparation=preparation(student),
    )
    return head.rstrip() + picture_source() + _SCRIPT_MAIN


def _write(student: TrainedStudent, path: Path) -> None:
    import onnx as onnx_package

    model = onnx_model(pixels_to_logits(student), probe_images(student.task, 2).float(), input_name="pixels")
    model.doc_string = "Input: pixels 0..255 as float32, normalisation inside. Output: logits."
    values = {
        "arch_id": student.arch.arch_id,
        "arch": student.arch.canonical_json,
        "class_names": json.dumps(student.class_names),
        "preprocessing": json.dumps(student.preprocessing.as_dict()),
    }
    onnx_package.helper.set_model_props(model, values)
    onnx_package.save_model(model, path)


def _check(student: TrainedStudent, path: Path, tolerance: float) -> None:
    """Raise ExportError unless ONNX Runtime gives PyTorch's outputs, within `tolerance`, at every batch size."""
    import onnx as onnx_package
    import onnxruntime

    onnx_package.checker.check_model(onnx_package.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for size in BATCH_SIZES:
        pixels = probe_images(student.task, size, seed=size)
        reference = reference_logits(student, pixels)
        try:
            (output,) = session.run(["logits"], {"pixels": pixels.float().numpy()})
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
