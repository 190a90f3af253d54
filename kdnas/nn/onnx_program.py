"""A network as an ONNX model with a dynamic batch.

Shapes: B images, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

REQUIRES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that the extra `kdnas[onnx]` installs."""
EXTRA = "onnx"
_OPSET = 18


def onnx_model(module: nn.Module, example: Tensor, *, input_name: str) -> Any:
    """Return `module` as an `onnx.ModelProto` that takes `input_name` like `example` [B, C, H, W], for any B.

    Its output is called `logits`.
    """
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[input_name],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None  # it is None only where a file was asked for
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's progress lines and warnings from the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
