"""A network whose norms are folded answers as it did, and is itself again afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdnas.core.task import image_classification
from kdnas.nn.blocks import ConvNorm
from kdnas.nn.folding import folded
from kdnas.students import family_for, stated_arch
from kdnas.training.fused_norm import fused_norms, library

RESNET = {
    "stem_width": 8,
    **{f"stage{stage}.depth": 2 for stage in (1, 2)},
    "stage1.width": 8,
    "stage2.width": 24,
    "stage1.bottleneck": "plain",
    "stage2.bottleneck": 0.5,
    "stage1.skip": "identity",
    "stage2.skip": "projection",
}
MOBILENET = {
    "stem_width": 8,
    "stage1.depth": 2,
    "stage1.width": 16,
    "stage1.expand": 2,
    "stage1.kernel": 5,
    "stage1.squeeze_excite": True,
    "stage1.skip": "identity",
    "head_width": 32,
}


@pytest.fixture(params=["resnet", "mobilenet"])
def network(request):
    """A network whose norms have statistics, scales and shifts of their own."""
    family = request.param
    torch.manual_seed(0)
    made = family_for(family, image_classification((3, 16, 16), 5)).build(
        stated_arch(family, RESNET if family == "resnet" else MOBILENET)
    )
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return made.eval()


def test_answers_agree_and_nothing_is_left(network):
    samples, before = torch.randn(4, 3, 16, 16), copy.deepcopy(network.state_dict())
    expected, parts = network(samples), list(network.modules())
    with folded(network), torch.inference_mode():
        assert not any(isinstance(part, nn.BatchNorm2d) for layer in _layers(network) for part in layer)
        assert torch.allclose(network(samples), expected, rtol=1e-4, atol=1e-5)
    assert [id(part) for part in network.modules()] == [id(part) for part in parts]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(samples), expected)


@pytest.mark.skipif(library() is None, reason="no C compiler")
def test_while_norms_are_fused_for_training(network):
    samples = torch.randn(4, 3, 16, 16)
    expected, threads = network(samples), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with fused_norms(network, torch.device("cpu"), pixels=1e9) as fused, folded(network), torch.inference_mode():
            assert fused
            assert torch.allclose(network(samples), expected, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_an_error_leaves_the_network_whole(network):
    layers = [tuple(layer) for layer in _layers(network)]
    with pytest.raises(KeyboardInterrupt), folded(network):
        raise KeyboardInterrupt
    assert [tuple(layer) for layer in _layers(network)] == layers


def test_norms_that_train_or_keep_no_statistics_stay():
    training, without = ConvNorm(3, 4, 3), ConvNorm(3, 4, 3)
    without[1] = nn.BatchNorm2d(4, track_running_stats=False)
    network = nn.Sequential(training, without).eval()
    training.train()
    with folded(network):
        assert isinstance(training[1], nn.BatchNorm2d)
        assert isinstance(without[1], nn.BatchNorm2d)


def test_parts_that_are_parametrized_or_listened_to_stay():
    layers, heard = [ConvNorm(3, 4, 3) for _ in range(3)], []
    torch.nn.utils.parametrizations.weight_norm(layers[0][0])
    layers[1][1].register_forward_hook(lambda *call: heard.append(call[0]))
    layers[2][0].register_forward_pre_hook(lambda *call: heard.append(call[0]))
    network = nn.ModuleList(layers).eval()
    with folded(network), torch.inference_mode():
        assert all(isinstance(layer[1], nn.BatchNorm2d) for layer in layers)
        for layer in layers:
            layer(torch.zeros(1, 3, 4, 4))
    assert heard == [layers[1][1], layers[2][0]]


def _layers(network):
    return [part for part in network.modules() if isinstance(part, ConvNorm)]
