"""Feature taps, stage detection, stage matching and normalisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdnas.errors import ConfigError
from kdnas.nn.matching import match_stages, to_common_size
from kdnas.nn.normalise import Normalised
from kdnas.nn.taps import OutputShapes, Taps, find_stages, output_shapes, stage_names


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
                nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU()),
            ]
        )
        self.classifier = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = stage(images)
        return self.classifier(images.mean(dim=(2, 3)))


NAMES = ("stages.0", "stages.1")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_taps_give_what_the_network_computes_on_the_way(images: Tensor) -> None:
    torch.manual_seed(0)
    network = Net().eval()
    first = network.stages[0](images)
    second = network.stages[1](first)
    with Taps(network, NAMES, "classifier") as tapped:
        outputs = tapped(images)
    assert torch.equal(outputs.stages[0], first)
    assert torch.equal(outputs.stages[1], second)
    assert torch.equal(outputs.embedding, second.mean(dim=(2, 3)))
    assert torch.equal(outputs.logits, network(images))
    outputs.stages[0].sum().backward()
    assert network.stages[0][0].weight.grad is not None


def test_taps_capture_only_what_is_needed_and_leave_nothing_behind(images: Tensor) -> None:
    network = Net()
    text = repr(network)
    with Taps(network, NAMES, "classifier", needs={"logits"}) as tapped:
        assert hooks(network) == 0
        outputs = tapped(images)
        assert outputs.stages == ()
        assert outputs.embedding is None
    with Taps(network, NAMES, "classifier", needs={"embedding"}) as tapped:
        assert hooks(network) == 1
        outputs = tapped(images)
        assert outputs.stages == ()
        assert outputs.embedding.shape == (2, 6)
    tapped = Taps(network, NAMES, "classifier")
    with pytest.raises(RuntimeError), tapped:
        tapped(images[:, :2])  # two channels where the network wants three
    assert hooks(network) == 0
    assert repr(network) == text
    assert tapped._captured == {}


def test_taps_refuse_names_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"'stages\.7', 'head'"):
        Taps(Net(), ("stages.0", "stages.7"), "head")


class Scattered(nn.Module):
    """A stage that mixes up the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten(0)

    def forward(self, samples: Tensor) -> Tensor:
        return self.flat(samples).unflatten(0, samples.shape)


def test_output_shapes_leave_training_flags_and_statistics(images: Tensor) -> None:
    network = Net().train()
    network.stages[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert output_shapes(network, NAMES, "classifier", images) == OutputShapes(5, ((4, 8, 8), (6, 4, 4)), 6)
    assert output_shapes(network, (), None, images) == OutputShapes(5)
    assert network.stages[0].training
    assert not network.stages[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert output_shapes(network, ("classifier",), None, images).stages == ((1, 5),)  # a vector is one token
    with pytest.raises(ConfigError, match=r"stages: 'flat' gives a tensor of \(60,\)"):
        output_shapes(Scattered(), ("flat",), None, torch.ones(2, 30))


def test_stage_names_follow_the_students_contract() -> None:
    assert stage_names(Net()) == (NAMES, "classifier")
    assert stage_names(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) == ((), None)


def conv(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())


def test_find_stages_of_a_plain_network_without_its_stem_and_pooling() -> None:
    network = nn.Sequential()
    network.add_module("stem", conv(3, 4, stride=2))  # alone at 16x16: the stem
    network.add_module("one", nn.Sequential(conv(4, 8, stride=2), conv(8, 8)))
    network.add_module("two", nn.Sequential(conv(8, 8, stride=2), conv(8, 12)))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", nn.Flatten())
    network.add_module("head", nn.Linear(12, 10))
    example = torch.zeros(2, 3, 32, 32)
    stages, classifier = find_stages(network, example)
    assert stages == ("one", "two")
    assert classifier == "head"
    shapes = output_shapes(network, stages, classifier, example)
    assert shapes == OutputShapes(10, ((8, 8, 8), (12, 4, 4)), 12)
    assert hooks(network) == 0
    assert network.training


def test_find_stages_of_one_convolution_a_size() -> None:
    layers = nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    network = nn.Sequential(*layers)
    assert find_stages(network, torch.zeros(2, 1, 8, 8)) == (("1", "3"), "5")


def test_find_stages_of_a_convolutional_classifier_has_no_embedding() -> None:
    network = nn.Sequential(conv(3, 4), conv(4, 4), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert find_stages(network, torch.zeros(2, 3, 8, 8)) == (("2",), None)


def test_find_stages_of_known_architectures() -> None:
    timm = pytest.importorskip("timm")
    example = torch.zeros(2, 3, 64, 64)
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=10)
    assert find_stages(resnet, example) == (("layer1", "layer2", "layer3", "layer4"), "fc")
    mobile = timm.create_model("mobilenetv3_small_050", num_classes=10)
    stages, classifier = find_stages(mobile, example)
    shapes = output_shapes(mobile, stages, classifier, example)
    sizes = [shape[1] for shape in shapes.stages]
    assert sizes == sorted(set(sizes), reverse=True)
    assert len(sizes) >= 3
    assert shapes.outputs == 10
    assert shapes.embedding == mobile.classifier.in_features
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=2)
    assert find_stages(vit, example) == (("blocks.0", "blocks.1"), "head")
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, num_classes=10, depths=(1, 1, 1, 1)
    )
    assert find_stages(swin, example)[0] == ()


def test_equally_many_stages_pair_in_order_whatever_their_sizes() -> None:
    student, teacher = [(4, 8, 8), (4, 4, 4)], [(9, 32, 32), (9, 16, 16)]
    assert match_stages(student, teacher) == ((0, 0), (1, 1))


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ([32, 16], [32, 16, 8], [(0, 0), (1, 1)]),  # the last stage has depth 0
        ([16, 8], [32, 16, 8], [(0, 1), (1, 2)]),
        ([32, 8], [32, 16, 8], [(0, 0), (1, 2)]),
        ([8], [32, 16, 8], [(0, 2)]),
        ([32, 16, 8], [32, 8], [(0, 0), (2, 1)]),  # a student with more stages than its teacher
        ([32, 16, 8], [56, 28, 14, 7], [(0, 1), (1, 2), (2, 3)]),  # a teacher that enlarges its images
        ([8, 8], [8, 8, 8], [(0, 1), (1, 2)]),  # ties: the later stages
        ([], [32, 16], []),
    ],
)
def test_stages_pair_by_spatial_size_in_order(
    student: list[int], teacher: list[int], pairs: list[tuple[int, int]]
) -> None:
    assert list(match_stages([(4, n, n) for n in student], [(7, n, n) for n in teacher])) == pairs


def test_the_larger_map_is_pooled_each_side_for_itself() -> None:
    a = torch.arange(8.0).view(1, 1, 2, 4)
    b = torch.zeros(1, 3, 4, 2)
    ours, theirs = to_common_size(a, b)
    # Columns in pairs: (0+1)/2, (2+3)/2; (4+5)/2, (6+7)/2.
    assert ours.flatten().tolist() == [0.5, 2.5, 4.5, 6.5]
    assert theirs.shape == (1, 3, 2, 2)


def test_normalised_takes_raw_images_and_keeps_the_networks_state_dict() -> None:
    network = nn.Conv2d(2, 1, 1)
    module = Normalised(network, (100.0, 50.0), (50.0, 25.0))
    images = torch.tensor([200.0, 25.0]).view(1, 2, 1, 1)
    # (200 - 100) / 50 = 2 and (25 - 50) / 25 = -1
    expected = network(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
    assert torch.equal(module(images), expected)
    assert set(module.state_dict()) == {"network.weight", "network.bias"}
    for mean, std in (((1.0,), (1.0, 2.0)), ((1.0,), (0.0,)), ((1.0,), (math.nan,))):
        with pytest.raises(ValueError, match="positive std"):
            Normalised(network, mean, std)
