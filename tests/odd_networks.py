"""Small residual networks as users have them, each odd in one way: a file that a study names as its teacher's."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput


@dataclass
class Answer:
    features: torch.Tensor
    logits: torch.Tensor


class Named(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


class Odd(nn.Module):
    """A stem, a residual block and a head."""

    def __init__(self, kind="plain", width=16):
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.mid = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 10, 1) if kind == "convolution" else nn.Linear(width * 16, 10)
        if kind == "buffer":
            self.register_buffer("scale", torch.linspace(0.5, 1.5, width).view(1, -1, 1, 1))

    def features(self, images):
        maps = torch.relu(self.stem(images))
        if self.kind == "buffer":
            maps = maps * self.scale
        if self.kind == "control" and float(maps.mean().item()) > 1e9:
            maps = maps * 2
        if self.kind == "numpy":
            maps = torch.from_numpy(maps.detach().numpy())
        maps = maps + self.last(torch.relu(self.mid(maps)))
        return nn.functional.adaptive_avg_pool2d(maps, 4)

    def forward(self, images, *more):
        maps = self.features(images)
        logits = self.head(maps).mean((2, 3)) if self.kind == "convolution" else self.head(maps.flatten(1))
        if self.kind == "mapping":
            return {"features": maps, "logits": logits}
        if self.kind == "tuple":
            return logits, maps
        if self.kind in ("record", "named"):
            return (Answer if self.kind == "record" else Named)(maps, logits)
        if self.kind == "model_output":
            return ImageClassifierOutput(logits=logits)
        return logits


class Several(Odd):
    """Asks for more than the images."""

    def forward(self, images, lengths):
        return super().forward(images)


def build(kind="plain", width=16):
    """Return the network of that kind."""
    network = Several(kind, width) if kind == "several" else Odd(kind, width)
    if kind == "compiled":
        return torch.compile(network)
    if kind == "half":
        network.load_state_dict(load_file(Path(__file__).with_name("plain.safetensors")))
        return network.half()
    if kind == "quantised":
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    return network
