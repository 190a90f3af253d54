"""Multiply-accumulates and parameters of any built network, counted on the network itself.

Students have closed forms (`kdnas.nn.counting`), which give the same numbers without building anything.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

Shape = tuple[int, ...]

_FVCORE_PRODUCTS = ("conv", "linear", "matmul", "addmm", "mm", "bmm", "einsum")
_FUSED = "scaled_dot_product_attention"
_ADDED = "baddbmm"
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def traced_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Return the multiply-accumulates of `module(*inputs)`, by the formulas of torch's FlopCounterMode.

    Convolutions, linear layers and matrix products count, whoever asks for them: recurrent layers, attention's two
    products, einsum. Nothing elementwise does.
    """
    seen: list[int] = []
    with whole_operators_taken_apart(), torch.no_grad(), ProductsSeen(lambda _, __, macs: seen.append(macs)):
        module(*inputs)
    return sum(seen)


class ProductsSeen(TorchDispatchMode):
    """Within it, `note` is told the operator, the arguments and the multiply-accumulates of every product.

    As torch's FlopCounterMode counts them, which in addition watches modules, and does not bear every one: not those
    that are given views of their parents' parameters.
    """

    def __init__(self, note: Callable[[Any, tuple[Any, ...], int], None]):
        super().__init__()
        self._note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        counted = _flops_of(func)
        if counted is None and func is not torch.ops.prim.device.default:
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        result = func(*args, **kwargs)
        if counted is not None:
            self._note(func._overloadpacket, args, int(counted(*args, **kwargs, out_val=result)) // 2)
        return result


def fvcore_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Return the multiply-accumulates of `module(*inputs)` by fvcore's operator counts.

    A second opinion: its tracer is another one than torch's counter. Convolutions, linear layers and matrix products
    count, and products that it has no formula of its own for: attention's two where they are fused, one that is added
    to something, as BLOOM's attention does, and recurrent layers; its formula of einsum keeps four digits.
    """
    with whole_operators_taken_apart(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the tracer that fvcore counts with
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import get_shape

        def fused(taken: list[Any], given: list[Any]) -> int:
            return _attention(*map(get_shape, taken[:3])) // 2

        def added(taken: list[Any], given: list[Any]) -> int:
            (batch, rows, inner), (*_, columns) = map(get_shape, taken[1:3])
            return int(batch * rows * inner * columns)

        def recurrent(taken: list[Any], given: list[Any]) -> int:
            steps = math.prod(get_shape(taken[0])[:2])
            weights = [get_shape(weight) for weight in taken[2].node().inputs()]
            return steps * sum(math.prod(shape) for shape in weights if len(shape) == 2)

        def summed(taken: list[Any], given: list[Any]) -> int:
            shapes = [get_shape(operand) for operand in taken[1].node().inputs()]
            seen: list[int] = []
            with torch.device("meta"), ProductsSeen(lambda _, __, macs: seen.append(macs)):
                torch.einsum(taken[0].toIValue(), *map(torch.empty, shapes))
            return sum(seen)

        analysis = FlopCountAnalysis(module, inputs)
        analysis.set_op_handle(f"aten::{_FUSED}", fused, f"aten::{_ADDED}", added, "aten::einsum", summed)
        analysis.set_op_handle(**{f"aten::{operator}": recurrent for operator in _RECURRENT})
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        counts = analysis.by_operator()
    return int(sum(counts.get(operator, 0) for operator in (*_FVCORE_PRODUCTS, _FUSED, _ADDED, *_RECURRENT)))


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def _flops_of(operator: Any) -> Callable[..., int] | None:
    """Return what counts the FLOPs (two a MAC) of one call of an operator of torch, None where it counts none."""
    packet = getattr(operator, "_overloadpacket", None)
    own = _MORE.get(packet)
    if own is None:
        return flop_registry.get(packet)
    return shape_wrapper(own)


@contextlib.contextmanager
def whole_operators_taken_apart() -> Iterator[None]:
    """Within it, torch does layers by their matrix products, where it has one opaque operator that nothing can count.

    These are oneDNN's and cuDNN's recurrent layers, the fused attention kernels, and the encoder's fast path.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oneDNN's switch speaks of devices that are not here
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with (
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                sdpa_kernel(SDPBackend.MATH),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def _matrix_vector(matrix: Shape, vector: Shape, **_: Any) -> int:
    return 2 * math.prod(matrix)


def _added_matrix_vector(added: Shape, matrix: Shape, vector: Shape, **_: Any) -> int:
    return 2 * math.prod(matrix)


def _added_batches(added: Shape, left: Shape, right: Shape, **_: Any) -> int:
    return 2 * math.prod(left) * right[-1]


def _dot(left: Shape, right: Shape, **_: Any) -> int:
    return 2 * math.prod(left)


def _trilinear(
    left: Shape,
    weight: Shape,
    right: Shape,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    *_: Any,
    **__: Any,
) -> int:
    """`nn.Bilinear`: the three are broadcast to one shape, multiplied and summed."""
    shapes = []
    for shape, expanded in ((left, expand1), (weight, expand2), (right, expand3)):
        sides = list(shape)
        for axis in sorted(expanded):
            sides.insert(axis, 1)
        shapes.append(tuple(sides))
    return 2 * math.prod(torch.broadcast_shapes(*shapes))


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Query [..., L, D] times key [..., S, D], and the result times value [..., S, V]."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_aten = torch.ops.aten
# Products that FlopCounterMode has no formula for: FLOPs (two a MAC), by operator.
_MORE: dict[Any, Callable[..., int]] = {
    _aten.mv: _matrix_vector,
    _aten.addmv: _added_matrix_vector,
    _aten.addbmm: _added_batches,
    _aten.dot: _dot,
    _aten.vdot: _dot,
    _aten._trilinear: _trilinear,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
