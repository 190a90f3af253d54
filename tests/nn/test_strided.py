"""Strided 1x1 convolutions of few channels: the gradients are right, and nothing crashes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from kdnas.nn.strided import thinned_first

CRASHED = """
import torch
from torch import nn
from kdnas.nn.strided import thinned_first
layer = nn.Conv2d(8, 16, 1, 2, bias=False).to(memory_format=torch.channels_last)
images = torch.randn(32, 8, 96, 96).contiguous(memory_format=torch.channels_last).requires_grad_()
with thinned_first(layer):
    layer(images).sum().backward()
"""


def test_what_crashes_in_torch_does_not_here() -> None:
    subprocess.run([sys.executable, "-c", CRASHED], check=True, timeout=120)


@pytest.mark.parametrize(("stride", "size"), [(2, 14), (2, 15), (3, 16), ((1, 2), 9)])
def test_gradients_are_those_of_the_definition(stride: int | tuple[int, int], size: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 1, stride).to(memory_format=torch.channels_last)
    exact = nn.Conv2d(5, 7, 1, stride).double()
    exact.load_state_dict(layer.state_dict())
    images = torch.randn(4, 5, size, size).contiguous(memory_format=torch.channels_last)
    one, other = images.clone().requires_grad_(), images.double().contiguous().requires_grad_()
    with thinned_first(layer):
        outputs = layer(one)
    wanted = exact(other)
    torch.testing.assert_close(outputs.double(), wanted, atol=1e-5, rtol=1e-5)
    gradient = torch.randn_like(outputs)
    outputs.backward(gradient)
    wanted.backward(gradient.double())
    for found, true in (
        (layer.weight.grad, exact.weight.grad),
        (layer.bias.grad, exact.bias.grad),
        (one.grad, other.grad),
    ):
        torch.testing.assert_close(found.double(), true, atol=1e-4, rtol=1e-4)


def test_layers_are_as_they_were_when_it_ends() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1, 2, "valid"), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 1))
    with thinned_first(network):
        assert ["forward" in vars(layer) for layer in network] == [True, False, False]
        with thinned_first(network):
            pass
        assert "forward" in vars(network[0])
    assert not any("forward" in vars(layer) for layer in network)
