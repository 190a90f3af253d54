"""Random numbers that are a function of what they are for: every draw a hash of (seed, view, sample, stream).

A view then depends neither on the order of the batches, nor on their size, nor on the device, and all trials of a study
see the same views. The hash is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), read at a counter.

Shapes: B samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kdnas.core.seeds import derive_seed

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the 64 bits of `value` as torch's int64 spells them."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(bits: Tensor, count: int) -> Tensor:
    """Return int64 `bits` shifted right by `count` with zeros coming in."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


@dataclass(frozen=True)
class Draws:
    """What is drawn for the view `view` of `samples` int64 [B] (sample numbers >= 0); every stream for itself."""

    samples: Tensor
    seed: int
    view: int

    def bits(self, stream: str) -> Tensor:
        """Return 64 random bits a sample, int64 [B]; every `stream` is independent of the others."""
        key = derive_seed(self.seed, "augment", stream, self.view)
        bits = self.samples * _signed(_GAMMA) + _signed(key + _GAMMA)  # int64 wraps around
        bits = (bits ^ _shift(bits, 30)) * _signed(_MULTIPLIER_1)
        bits = (bits ^ _shift(bits, 27)) * _signed(_MULTIPLIER_2)
        return bits ^ _shift(bits, 31)

    def below(self, stream: str, limit: int) -> Tensor:
        """Return a random integer in [0, limit) a sample, int64 [B]; `limit` is at most 2**31."""
        return (_shift(self.bits(stream), 33) * limit) >> 31

    def uniform(self, stream: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return a random number in [low, high) a sample, float64 [B]."""
        return low + (high - low) * (_shift(self.bits(stream), 11).double() * 2.0**-53)

    def sign(self, stream: str) -> Tensor:
        """Return -1 or 1 a sample, float64 [B]."""
        return 1.0 - 2.0 * (self.bits(stream) < 0).double()
