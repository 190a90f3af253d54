import pytest
import torch
from torch.nn import functional

from kdnas.nn.blocks import (
    ConvNorm,
    IdentityShortcut,
    InvertedBlock,
    InvertedPlan,
    ResidualBlock,
    ResidualPlan,
    SqueezeExcite,
    Student,
    StudentPlan,
)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_a_stride_maps_every_size_to_its_ceiling(kernel, stride, size):
    x = torch.zeros(1, 2, size, size + 1)
    expected = (1, 3, -(-size // stride), -(-(size + 1) // stride))
    assert ConvNorm(2, 3, kernel, stride).eval()(x).shape == expected
    assert IdentityShortcut(2, 3, stride)(x).shape == expected


def test_identity_shortcut_subsamples_pads_and_crops():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    padded = IdentityShortcut(2, 3, 2)(x)
    assert padded[0, 0].tolist() == [[0, 2], [8, 10]]
    assert padded[0, 1].tolist() == [[16, 18], [24, 26]]
    assert padded[0, 2].tolist() == [[0, 0], [0, 0]]
    assert torch.equal(IdentityShortcut(2, 1, 1)(x), x[:, :1])


@pytest.mark.parametrize("middle", [0, 3])
@pytest.mark.parametrize("skip", ["identity", "projection", "none"])
@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 6, 1), (6, 4, 2)])
def test_residual_block_is_relu_of_branch_plus_shortcut(middle, skip, shape):
    inner, outer, stride = shape
    block = ResidualBlock(ResidualPlan(inner, outer, middle, stride, skip)).eval()
    x = torch.randn(2, inner, 7, 5)
    before = x.clone()
    expected = block.branch(x) if block.shortcut is None else block.branch(x) + block.shortcut(x)
    assert torch.equal(block(x), functional.relu(expected))
    assert torch.equal(x, before)
    assert len(block.branch) == (3 if middle else 2)
    projected = sum(p.numel() for p in block.shortcut.parameters()) if block.shortcut is not None else 0
    assert projected == (inner * outer + 2 * outer if skip == "projection" else 0)


def test_inverted_block_layers_follow_the_plan():
    block = InvertedBlock(InvertedPlan(4, 12, 4, kernel=5, stride=1, squeezed=3, skip=True)).eval()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x + block.branch(x))
    convolutions = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [
        (12, 4, 1, 1), (12, 1, 5, 5), (3, 12, 1, 1), (12, 3, 1, 1), (4, 12, 1, 1)
    ]  # fmt: skip
    unexpanded = InvertedBlock(InvertedPlan(4, 4, 8, kernel=3, stride=2, squeezed=0, skip=False)).eval()
    assert len(unexpanded.branch) == 2
    assert torch.equal(unexpanded(x), unexpanded.branch(x))


def test_squeeze_excite_scales_by_a_gate_of_the_channel_means():
    gate = SqueezeExcite(3, 2)
    x = torch.randn(2, 3, 4, 4)
    means = x.mean(dim=(2, 3))
    hidden = (means @ gate.reduce.weight[:, :, 0, 0].T + gate.reduce.bias).clamp(min=0)
    raw = hidden @ gate.expand.weight[:, :, 0, 0].T + gate.expand.bias
    scale = ((raw + 3) / 6).clamp(0, 1)
    assert torch.allclose(gate(x), x * scale[:, :, None, None], atol=1e-6)


def student(skip: str) -> Student:
    stages = ((ResidualPlan(4, 4, 0, 1, skip),), (ResidualPlan(4, 8, 2, 2, skip), ResidualPlan(8, 8, 2, 1, skip)))
    return Student(StudentPlan(3, 4, 1, stages, head_width=0, num_classes=5), ResidualBlock)


def test_forward_is_stem_stages_pooling_classifier():
    network = student("identity").eval()
    x = torch.randn(2, 3, 9, 8)
    features = network.stem(x)
    shapes = []
    for stage in network.stages:
        features = stage(features)
        shapes.append(tuple(features.shape[1:]))
    assert shapes == [(4, 9, 8), (8, 5, 4)]
    logits = functional.adaptive_avg_pool2d(features, 1).flatten(1) @ network.classifier.weight.T
    assert torch.allclose(network(x), logits + network.classifier.bias, atol=1e-6)


@pytest.mark.parametrize("skip", ["identity", "projection", "none"])
def test_branches_count_from_the_start(skip):
    """A last scale of 0 would keep all but itself from learning at first, which brief trainings do not make up for."""
    network = student(skip)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)
    functional.cross_entropy(network(torch.randn(8, 3, 8, 8)), torch.arange(8) % 5).backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_convolutions_start_by_kaimings_rule_over_fan_out():
    stages = ((ResidualPlan(64, 64, 0, 1, "none"),),)
    network = Student(StudentPlan(3, 64, 1, stages, 0, 10), ResidualBlock)
    weight = network.stages[0][0].branch[0][0].weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("skip", ["identity", "projection", "none"])
def test_gradients_reach_every_parameter_in_channels_last(skip):
    network = student(skip).to(memory_format=torch.channels_last)
    x, y = torch.randn(8, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(8) % 5
    functional.cross_entropy(network(x), y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
