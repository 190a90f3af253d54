"""Batch norm, residual sum and ReLU in one pass over memory, for students that train on one CPU thread.

On a CPU, torch's batch norm, addition and ReLU take about as long as the convolutions of a small student: each walks
through memory for itself, and rows of 16 channels leave its vector loops idle. `fused_norm.c` does what follows a
convolution in one walk for the statistics and one for the result. It is compiled once a process by the system's C
compiler, for this very processor, in a second or two; where there is none, students train with torch's own operators.

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from kdnas.nn.blocks import ConvNorm, InvertedBlock, ResidualBlock

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_TIME_LIMIT_S = 60
LEAST_PIXELS = 4e6
"""4,000 images of 32x32: some ten seconds of training, of which fused norms save about what compiling takes."""


@contextlib.contextmanager
def fused_norms(network: nn.Module, device: torch.device, *, pixels: float, wanted: bool = True) -> Iterator[bool]:
    """Let the blocks of `network` train with fused norms until the context ends; give whether they do.

    They do where that is `wanted` and pays (`pay`), and a C compiler is at hand. Other modules, and all of them in eval
    mode, run as they are; parameters, buffers and names stay the network's own.
    """
    fused = wanted and pay(device, pixels) and library() is not None
    changed: list[nn.Module] = []
    if fused:
        forwards: dict[type, Callable[..., Tensor]] = {
            ConvNorm: _conv_norm,
            ResidualBlock: _residual,
            InvertedBlock: _inverted,
        }
        for module in network.modules():
            if type(module) in forwards:
                module.forward = MethodType(forwards[type(module)], module)
                changed.append(module)
    try:
        yield fused and bool(changed)
    finally:
        for module in changed:
            del module.forward


def pay(device: torch.device, pixels: float) -> bool:
    """Return whether fused norms are worth compiling: for one CPU thread whose training sees enough `pixels`.

    Pixels are those of all its images together, channels not counted.
    """
    return device.type == "cpu" and torch.get_num_threads() == 1 and pixels >= LEAST_PIXELS


def compiler() -> list[str] | None:
    """Return the command of the C compiler, None where there is none. `CC` names it, else it is cc."""
    command = shlex.split(os.environ.get("CC", "cc"))
    return command if command and shutil.which(command[0]) is not None else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions; None where they cannot be compiled."""
    compile_it = compiler()
    if compile_it is None:
        return None
    source = resources.files("kdnas.training").joinpath("fused_norm.c")
    # A folder of this process alone: nobody else can put a library there, and nothing stale is ever loaded.
    with tempfile.TemporaryDirectory(prefix="kdnas-") as folder, resources.as_file(source) as code:
        built = Path(folder) / "fused_norm.so"
        command = [*compile_it, *_FLAGS, str(code), "-o", str(built), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_TIME_LIMIT_S)
            loaded = ctypes.CDLL(str(built))
        except (OSError, subprocess.SubprocessError):
            return None
    pointer, number = ctypes.c_void_p, ctypes.c_long
    arguments: list[Any]
    for name in _NAMES.values():
        arguments = [pointer] * 3 + [number] * 2 + [pointer] * 4 + [ctypes.c_float] * 2 + [ctypes.c_int] + [pointer] * 2
        getattr(loaded, f"forward_{name}").argtypes = arguments
        arguments = [pointer] * 6 + [number] * 2 + [pointer] * 3 + [ctypes.c_int] + [pointer] * 2
        getattr(loaded, f"backward_{name}").argtypes = arguments
    return loaded


class FusedNorm(torch.autograd.Function):
    """relu(batch_norm(x) + skip), the ReLU and the skip being optional. Differentiable once.

    The result is given twice, as itself and as its twin, for a block whose branch takes the one and whose shortcut the
    other: their gradients then arrive apart and are added up in the same walk through memory as all else.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, norm: nn.Module, relu: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the output twice, channels-last in x's dtype, and move the running statistics of `norm`."""
        x = x.contiguous(memory_format=torch.channels_last)
        skip = None if skip is None else skip.to(x.dtype).contiguous(memory_format=torch.channels_last)
        channels = x.shape[1]
        y, mean, rstd = torch.empty_like(x), torch.empty(channels), torch.empty(channels)
        _call(
            "forward", x.dtype, x, skip, y, x.numel() // channels, channels, weight, bias,
            norm.running_mean, norm.running_var, _momentum(norm), norm.eps, relu, mean, rstd,
        )  # fmt: skip
        # Where nothing is cut off, any finite tensor serves as the mask, and x is at hand.
        ctx.save_for_backward(x, y if relu else x, weight, mean, rstd)
        ctx.relu, ctx.with_skip = relu, skip is not None
        ctx.set_materialize_grads(False)
        return y, y.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias and skip."""
        x, y, weight, mean, rstd = ctx.saved_tensors
        g, *twin = [
            gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
            for gradient in gradients
            if gradient is not None
        ]
        channels = x.shape[1]
        dx, dweight, dbias = torch.empty_like(x), torch.empty(channels), torch.empty(channels)
        changed = ctx.relu or bool(twin)  # else the gradient passes through to the skip as it is
        dskip = (torch.empty_like(x) if changed else g) if ctx.with_skip else None
        _call(
            "backward", x.dtype, g, twin[0] if twin else None, x, y, dx, dskip if changed else None,
            x.numel() // channels, channels, weight, mean, rstd, ctx.relu, dweight, dbias,
        )  # fmt: skip
        return dx, dweight, dbias, dskip, None, None


def fused_norm(x: Tensor, norm: nn.BatchNorm2d, skip: Tensor | None, *, relu: bool) -> Tensor:
    """Return relu(norm(x) + skip) for `x` [B, C, H, W] on the CPU, `skip` of its shape or None.

    What the fused functions are not made for goes to torch's own operators: eval mode, a single value a channel, norms
    without scale and shift or without running statistics, other types. The result's twin hangs on it, for `_twin`.
    """
    if not _fusible(norm, x):
        y = norm(x)
        if skip is not None:
            y += skip
        return y.relu_() if relu else y
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    y, y.twin = FusedNorm.apply(x, norm.weight, norm.bias, skip, norm, relu)
    return y


def _twin(x: Tensor) -> Tensor:
    """Return `x` for a second use: its twin where it has one."""
    return getattr(x, "twin", x)


def _momentum(norm: nn.Module) -> float:
    """Return the weight of the new statistics; a norm without momentum keeps the mean of all batches."""
    momentum = norm.momentum
    return 1.0 / float(norm.num_batches_tracked) if momentum is None else momentum  # type: ignore[return-value]


def _call(function: str, dtype: torch.dtype, *arguments: Any) -> None:
    found = library()
    assert found is not None
    plain = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    if not getattr(found, f"{function}_{_NAMES[dtype]}")(*plain):
        raise MemoryError("out of memory in a fused norm")


def _fusible(norm: nn.Module, x: Tensor) -> bool:
    if not (norm.training and x.dtype in _NAMES and x.numel() > x.shape[1] and isinstance(norm, nn.BatchNorm2d)):
        return False
    owned = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return all(value is not None and value.dtype == torch.float32 and value.is_contiguous() for value in owned)


def _conv_norm(module: nn.Sequential, x: Tensor, skip: Tensor | None = None, relu: bool | None = None) -> Tensor:
    """Run a `ConvNorm`, with the `skip` and the ReLU of the block that it ends."""
    parts: list[Any] = list(module)
    convolution, norm = parts[:2]
    x = convolution(x)
    relu = len(parts) > 2 if relu is None else relu
    return fused_norm(x, norm, skip, relu=relu)


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    y = x
    for part in list(block.branch)[:-1]:
        y = part(y)
    last: Any = block.branch[-1]
    return _conv_norm(last, y, None if block.shortcut is None else block.shortcut(_twin(x)), relu=True)


def _inverted(block: InvertedBlock, x: Tensor) -> Tensor:
    y = x
    for part in list(block.branch)[:-1]:
        y = part(y)
    last: Any = block.branch[-1]
    return _conv_norm(last, y, _twin(x) if block.skip else None, relu=False)
