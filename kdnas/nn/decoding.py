"""Writing: what a language model computes for one more token of a text, and how it goes on with one.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class CachedStep(nn.Module):
    """A causal language model of transformers that keeps keys and values of the tokens before, given one token more.

    Args:
        network: The model; a copy is kept, in eval mode.
        context: What it has read, int64 [B, T].
    """

    context: Tensor

    def __init__(self, network: nn.Module, context: Tensor):
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        self.register_buffer("context", context, persistent=False)
        self._name = _cache_name(self.network)
        self._read()

    def _read(self) -> None:
        with torch.no_grad():
            answer: Any = self.network(self.context, use_cache=True)
        self.cache: Any = getattr(answer, self._name, None) or answer.past_key_values
        self._device = self.context.device

    def forward(self, token: Tensor) -> Tensor:
        """Return the logits [B, 1, V] after `token` int64 [B, 1]; the next call is given a token at the same place."""
        if self._device != token.device:  # the cache stays behind where a network is moved
            self._read()
        logits: Tensor = self.network(token, use_cache=True, **{self._name: self.cache}).logits
        self.cache.crop(-token.shape[1])
        return logits


class WholeStep(nn.Module):
    """A language model without such a cache: for one token more it reads the whole text again."""

    context: Tensor

    def __init__(self, network: nn.Module, context: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("context", context, persistent=False)

    def forward(self, token: Tensor) -> Tensor:
        """Return the logits [B, T + 1, V] of the text and `token` int64 [B, 1]."""
        logits: Tensor = self.network(torch.cat([self.context, token], dim=1))
        return logits


@torch.no_grad()
def continued(module: nn.Module, context: Tensor, count: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `context` int64 [B, T] and the `count` tokens that `module` goes on with, int64 [B, T + count].

    Args:
        module: A language model [B, T] to [B, T, V]; it writes in eval mode, and is left in the mode it came in.
        context: What it goes on from.
        count: How many tokens it adds.
        choose: From the logits [B, V] of the next token to tokens int64 [B, 1].
    """
    modes = [part for part in module.modules() if part.training]
    module.eval()
    found: Any = _keeps_a_cache(module)
    kept: dict[str, Any] = {}
    try:
        text, given = context, context
        for _ in range(count):
            if found is None:
                logits = module(text)
            else:
                answer = found(given, use_cache=True, **kept)
                logits, name = answer.logits, _cache_name(found)
                kept = {name: getattr(answer, name, None) or answer.past_key_values}
            given = choose(logits[:, -1])
            text = torch.cat([text, given], dim=1)
        return text
    finally:
        for part in modes:
            part.training = True


def _keeps_a_cache(module: nn.Module) -> nn.Module | None:
    """Return the part of `module` that is a causal language model of transformers; None where there is none."""
    return next((part for part in module.modules() if hasattr(part, "prepare_inputs_for_generation")), None)


def _cache_name(network: nn.Module) -> str:
    """Return what `network` calls its cache: from transformers 5.40 `cache`."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"


def decoding_step(module: nn.Module, context: Tensor) -> CachedStep | WholeStep:
    """Return the step of `module`, a language model [B, T] to [B, T, V], after it has read `context` int64 [B, T]."""
    found = _keeps_a_cache(module)
    if found is None:
        return WholeStep(module, context)
    device = next((one.device for one in found.parameters()), context.device)
    return CachedStep(found, context.to(device))
