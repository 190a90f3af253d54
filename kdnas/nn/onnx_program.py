"""A network as an ONNX model with a dynamic batch, and for texts a dynamic length."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

REQUIRES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that the extra `kdnas[onnx]` installs."""
EXTRA = "onnx"
_OPSET = 18


class _WithParts(nn.Module):
    """A network that gives its logits [B, V], and parts of them beside."""

    def __init__(self, network: nn.Module, places: Iterable[slice]):
        super().__init__()
        self.network = network
        self.places = tuple(places)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and their parts."""
        logits = self.network(inputs)
        return logits, *(logits[:, place] for place in self.places)


def onnx_model(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    *,
    dynamic_length: bool = False,
    parts: Mapping[str, slice] | None = None,
) -> Any:
    """Return `module` as an `onnx.ModelProto` that takes inputs of the names and kinds of `examples`, for any batch.

    With `dynamic_length` the second dimension of every input, the same for all, is any number, too: its axis is called
    `length`, as that of the batch is `batch`. Its output is called `logits`; of a network of one input, `parts` of them
    are outputs of their own, too.
    """
    module = _WithParts(module, parts.values()) if parts else module
    dims = {0: torch.export.Dim("batch")}
    if dynamic_length:
        dims[1] = torch.export.Dim.DYNAMIC
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(examples.values()),
            dynamo=True,
            opset_version=_OPSET,
            input_names=list(examples),
            output_names=["logits", *(parts or {})],
            dynamic_shapes=dynamic_shapes(module, dims, len(examples)),
            verbose=False,
        )
    assert program is not None  # it is None only where a file was asked for
    model = program.model_proto
    if dynamic_length:
        _call_length(model)
    return model


def _call_length(model: Any) -> None:
    """Call the second axis of the inputs `length`, for which torch has a symbol of its own such as `s27`."""
    shape = model.graph.input[0].type.tensor_type.shape
    symbol = shape.dim[1].dim_param
    if not symbol:
        return
    spelled = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:  # it may be a sum that the symbol is in
                axis.dim_param = spelled.sub("length", axis.dim_param)


def dynamic_shapes(module: nn.Module, dims: Mapping[int, Any], inputs: int) -> tuple[Any, ...]:
    """Return what torch.export wants to know of so many inputs, whose `dims` are all dynamic.

    Shapes of a module that is called with `*inputs` it wants together.
    """
    each = tuple(dims for _ in range(inputs))
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return (each,) if kinds and kinds[0] is inspect.Parameter.VAR_POSITIONAL else each


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
