"""Operator: one step of a network's forward pass, as plain data. Its price and its running time depend on nothing else.

H and W are an input's height and width; a stride s maps H to ceil(H / s).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Operator(NamedTuple):
    """One operator at batch 1, on an input of `height` x `width` pixels.

    `kind` is "conv" (a padded convolution without bias, its batch norm and activation included), "shortcut" (an
    identity that subsamples, crops or pads), "add" (the sum of branch and shortcut), "gate" (squeeze-and-excite by way
    of `out_channels`) or "classifier" (pooling and a linear layer).

    In transformers `height` counts tokens: "patches" (a convolution with bias, as far apart as it is wide), "linear" (a
    linear layer of every token), "attention" (the two products of queries, keys and values that are `in_channels`
    wide), "norm" (over the channels), "embedding" (a table of `in_channels` rows) or "vocabulary" (logits of every
    token by the rows of a table).
    """

    kind: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return -(-self.width // self.stride)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of its convolutions, linear layers and products, as fvcore counts these."""
        if self.kind == "attention":
            return 2 * self.in_channels * self.height * self.height
        if self.kind in ("conv", "patches", "linear", "vocabulary"):
            return self._weights * self.out_height * self.out_width
        return 0 if self.kind == "embedding" else self._weights

    @property
    def params(self) -> int:
        """Trainable parameters: weights, biases, and scale and shift of a norm; a vocabulary's are its table's."""
        biases = {
            "conv": 2 * self.out_channels,
            "gate": self.in_channels + self.out_channels,
            "norm": 2 * self.out_channels,
            "vocabulary": -self._weights,
        }
        return self._weights + biases.get(self.kind, self.out_channels if self.kind in _BIASED else 0)

    @property
    def _weights(self) -> int:
        dense = self.in_channels * self.out_channels
        if self.kind in ("conv", "patches"):
            return dense * self.kernel * self.kernel // self.groups
        return dense * _MATRICES.get(self.kind, 0)


_MATRICES = {"gate": 2, "classifier": 1, "linear": 1, "vocabulary": 1, "embedding": 1}
_BIASED = ("classifier", "linear", "patches")


@dataclass(frozen=True, eq=False)
class OperatorGroup:
    """Operators in a row that a student family made once, for all archs that have them.

    Equal to itself alone, so that what is known of a group is found by identity, in no time.
    """

    operators: tuple[Operator, ...]

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of all of them."""
        return sum(operator.macs for operator in self.operators)

    @cached_property
    def params(self) -> int:
        """Trainable parameters of all of them."""
        return sum(operator.params for operator in self.operators)
