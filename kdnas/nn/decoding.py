"""One step of writing: what a language model computes for one more token of a text that it has read.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
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
        names = inspect.signature(self.network.forward).parameters
        self._name = "cache" if "cache" in names else "past_key_values"  # from transformers 5.40 the first alone
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


def decoding_step(module: nn.Module, context: Tensor) -> CachedStep | WholeStep:
    """Return the step of `module`, a language model [B, T] to [B, T, V], after it has read `context` int64 [B, T]."""
    found = next((part for part in module.modules() if hasattr(part, "prepare_inputs_for_generation")), None)
    if found is None:
        return WholeStep(module, context)
    device = next((one.device for one in found.parameters()), context.device)
    return CachedStep(found, context.to(device))
