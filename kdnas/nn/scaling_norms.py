"""Norms over channels taken for what they are besides: a factor and an offset for every channel.

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


@contextmanager
def norms_as_scales(*networks: nn.Module) -> Iterator[None]:
    """Within it, layer, group and root-mean-square norms of `networks` compute factor x input + offset.

    Those that compute it by themselves are known by the name of their class.
    """
    with ExitStack() as stack:
        for module in (part for network in networks for part in network.modules()):
            if "rmsnorm" in type(module).__name__.lower() and not isinstance(module, nn.RMSNorm):
                stack.callback(module.register_forward_hook(_scaled_output).remove)
        stack.enter_context(_Scales())
        yield


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
    weight = getattr(module, "weight", None)
    return _scaled(inputs[0], weight if isinstance(weight, Tensor) else None, None)
