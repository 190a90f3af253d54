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
        """Multiply-accumulates of its convolutions and linear layers, as fvcore counts these."""
        if self.kind == "conv":
            return self._weights * self.out_height * self.out_width
        return self._weights

    @property
    def params(self) -> int:
        """Trainable parameters: weights, biases, and scale and shift of a batch norm."""
        biases = {"conv": 2 * self.out_channels, "gate": self.in_channels + self.out_channels}
        return self._weights + biases.get(self.kind, self.out_channels if self.kind == "classifier" else 0)

    @property
    def _weights(self) -> int:
        dense = self.in_channels * self.out_channels
        factor = {"conv": self.kernel * self.kernel, "gate": 2, "classifier": 1}.get(self.kind, 0)
        return dense * factor // self.groups


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
