"""What stands before networks that read tokens, and between their answers and logits.

Shapes: B batch, T tokens, V vocabulary, K candidates of a list, or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def by_candidate(network: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """Return what `network` gives for texts, inputs [B, T]; for lists [B, K, T] the score of each candidate, [B, K]."""
    if inputs[0].ndim < 3:
        return network(*inputs)
    scores = network(*(taken.flatten(0, 1) for taken in inputs))
    return scores.unflatten(0, inputs[0].shape[:2]).squeeze(-1)


class InPieces(nn.Module):
    """A language model that is given blocks [B, T] in pieces of `size` tokens, each read for itself; None: whole."""

    def __init__(self, network: nn.Module, size: int | None = None):
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] of `tokens` int64 [B, T]."""
        if self.size is None or tokens.shape[1] <= self.size:
            logits: Tensor = self.network(tokens)
            return logits
        whole = tokens.shape[1] // self.size * self.size
        pieces = self.network(tokens[:, :whole].reshape(-1, self.size))
        logits = pieces.reshape(len(tokens), whole, *pieces.shape[2:])
        return logits if whole == tokens.shape[1] else torch.cat([logits, self.network(tokens[:, whole:])], dim=1)


class LogitsOf(nn.Module):
    """A network of transformers, which answers with a record, as one that gives its logits.

    `settings` go with every call: further keyword arguments, such as `use_cache: false`.
    """

    def __init__(self, network: nn.Module, **settings: Any):
        super().__init__()
        self.network = network
        self.settings = settings

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits of `inputs`, given in the network's own order."""
        logits: Tensor = self.network(*inputs, **self.settings).logits
        return logits


class Beginnings(nn.Module):
    """A network that is given the first `size` tokens of texts, inputs [B, T], or of lists [B, K, T]; None: all."""

    def __init__(self, network: nn.Module, size: int | None = None):
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the network gives for the beginnings of `inputs`."""
        return by_candidate(self.network, tuple(taken[..., : self.size] for taken in inputs))


class ClassLogitsOf(LogitsOf):
    """A classifier of transformers that is given the first of its inputs, `names`, and answers for the classes `order`.

    `by_name`: they are not the first that it takes, as of GPT-2, which takes a cache before the mask. `order` None: it
    answers for its own classes, in their order.
    """

    order: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        order: Sequence[int] | None = None,
        *,
        by_name: bool = False,
        **settings: Any,
    ):
        super().__init__(network, **settings)
        self.names = tuple(names)
        self.by_name = by_name
        self.register_buffer("order", None if order is None else torch.tensor(order), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits [B, K] of `inputs` [B, T], or of lists [B, K, T]."""
        return by_candidate(self._logits, inputs[: len(self.names)])

    def _logits(self, *taken: Tensor) -> Tensor:
        if self.by_name:
            logits: Tensor = self.network(**dict(zip(self.names, taken, strict=True)), **self.settings).logits
        else:
            logits = super().forward(*taken)
        return logits if self.order is None else logits[:, self.order]
