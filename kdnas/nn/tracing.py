"""Multiply-accumulates and parameters of any built network, counted on the network itself.

Students have closed forms (`kdnas.nn.counting`), which give the same numbers without building anything.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_MULTIPLYING = ("conv", "linear", "matmul", "addmm", "mm", "bmm", "einsum", "scaled_dot_product_attention")


def traced_macs(module: nn.Module, input_shape: tuple[int, int, int], device: torch.device) -> int:
    """Return the multiply-accumulates of `module` for one input [C, H, W], by fvcore's operator counts.

    Convolutions, linear layers and matrix products count, fused attention's two products too; nothing elementwise does.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the tracer that fvcore counts with
        from fvcore.nn import FlopCountAnalysis

        example = torch.zeros(1, *input_shape, device=device)
        analysis = FlopCountAnalysis(module, example).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none").set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator, which fvcore cannot count
        try:
            counts = analysis.by_operator()
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(sum(counts.get(operator, 0) for operator in _MULTIPLYING))


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Return the MACs of query [..., L, D] times key [..., S, D], and of the result times value [..., S, V]."""
    query, key, value = (part.type().sizes() for part in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
