"""Norms over channels, taken as their affine part: a factor and an offset for every channel.

A network that is cut under such a norm differs from the masked one by nature, which hides a cut that is simply wrong.
With its norms taken as scales it must be equal again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LAST = (F.layer_norm, torch.layer_norm, F.rms_norm)
"""Norms over the last dimensions, whose second argument is their shape."""
_SECOND = (F.group_norm, torch.group_norm)
_CHANNEL_BY_CHANNEL = ("batchnorm", "instancenorm")
"""In the names of norms that average over a channel alone."""


@contextmanager
def norms_as_scales(*networks: nn.Module) -> Iterator[None]:
    """Within it, norms over the channels of `networks` compute factor x input + offset.

    Those that compute it by themselves are known by the name of their class: RMSNorm, LayerNorm, GlobalResponseNorm.
    """
    with ExitStack() as stack:
        for module in (part for network in networks for part in network.modules()):
            if norms_by_itself(module):
                stack.callback(module.register_forward_hook(_scaled_output).remove)
        stack.enter_context(_Scales())
        yield


def norms_by_itself(module: nn.Module) -> bool:
    """Whether a module is a norm over channels that is none of torch's own, by the name of its class."""
    name = type(module).__name__.lower().replace("grn", "norm")  # a global response norm
    known = isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
    if "norm" not in name or known or any(kind in name for kind in _CHANNEL_BY_CHANNEL):
        return False
    return not any(module.children()) and any(map(_is_vector, module.parameters()))


def _is_vector(parameter: Tensor) -> bool:
    return parameter.numel() == max(parameter.shape, default=0)


class _Scales(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _LAST:
            return _scaled(args[0], *_affine(args[2:], named))
        if func in _SECOND:
            weight, bias = _affine(args[2:], named)
            shape = (-1, *[1] * (args[0].ndim - 2))
            return _scaled(args[0], *(part if part is None else part.view(shape) for part in (weight, bias)))
        return func(*args, **named)


def _affine(given: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Return the factor and the offset among the arguments of a norm; None: it has none."""
    both = [*given[:2], None, None][:2]
    found = [named.get(name, part) for name, part in zip(("weight", "bias"), both, strict=True)]
    weight, bias = (part if isinstance(part, Tensor) else None for part in found)
    return weight, bias


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _scaled_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    if not isinstance(output, Tensor):
        return output
    x, parts = inputs[0], [getattr(module, leaf, None) for leaf in ("weight", "bias")]
    lengths = {part.numel() for part in parts if isinstance(part, Tensor)}
    last = lengths == {x.shape[-1]} and "2d" not in type(module).__name__.lower()
    spread = (-1,) if last else (-1, *[1] * (x.ndim - 2))  # channels come last, or second
    return _scaled(x, *(part.view(spread) if isinstance(part, Tensor) else None for part in parts))
