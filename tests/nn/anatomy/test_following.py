"""Channels that are followed through a network where torch-pruning does not tell which go together."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.anatomy._following import followed
from kdnas.nn.cutting import outputs, sound_part


def opened(network):
    """(network, example, its sound anatomy)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
        for tensor in filter(torch.is_floating_point, network.buffers()):
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    example = torch.randn(2, 3, 32, 32, generator=generator)
    network.eval()
    return network, example, sound_part(read_anatomy(network, example), network, example)


def cuts_as_it_masks(network, example, anatomy, names):
    kept = {name: range(1, anatomy.sizes[name], 2) for name in names}  # of a run of places no half is taken
    cut, masked = outputs(anatomy.cut(network, kept), example), outputs(anatomy.mask(network, kept), example)
    return torch.allclose(cut, masked, rtol=1e-4, atol=1e-4 * float(masked.abs().max()))


def test_blocks_that_shuffle_their_channels_are_cut_inside():
    network, example, anatomy = opened(torchvision.models.shufflenet_v2_x0_5(num_classes=5))
    inside = [axis.name for axis in anatomy.axes if axis.role == "inner"]
    assert [name for name in inside if name.startswith("stage2.1.")] == ["stage2.1.branch2.0.channels"]
    assert cuts_as_it_masks(network, example, anatomy, inside)
    why = {part.what: part.why for part in anatomy.uncut}
    assert why["the channels of stage2.1.branch2.5"] == "torch's cat takes them apart or joins them"


class Twofold(nn.Module):
    """A depthwise layer makes two maps of each, a block is told the size of its map, and its scale states a shape."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.last = nn.Conv2d(width, 10, 1), nn.Conv2d(10, width, 1)
            self.scale, self.shape = nn.Parameter(torch.ones(width)), (width, 1, 1)

        def forward(self, maps, side):
            assert maps.shape[-1] == side
            return maps + self.scale.view(self.shape) * self.last(torch.relu(self.first(maps)))

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8)
        self.norm, self.mixed = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)
        self.blocks = nn.ModuleList(self.Block(16) for _ in range(3))
        self.parted, self.whole = nn.Conv2d(16, 12, 1), nn.Linear(12, 6)
        self.head = nn.Linear(6 * 4, 2)

    def forward(self, images):
        maps = self.norm(self.twice(self.stem(images)))
        maps = maps + self.mixed(maps)
        for block in self.blocks:
            maps = block(maps, maps.shape[-1])
        one, other = self.parted(maps).split((4, 8), 1)
        rows = self.whole(torch.cat([other, one], 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(nn.functional.adaptive_avg_pool2d(rows, 2).flatten(1))


def test_what_one_channel_becomes_goes_together():
    torch.manual_seed(0)
    network, example, anatomy = opened(Twofold())
    axes, uncut = followed(network, example)
    assert {axis.name: axis.size for axis in axes} == {
        "stem.channels": 8,
        **{f"blocks.{index}.first.channels": 10 for index in range(3)},
        "whole.channels": 6,
    }
    assert [(part.what, "split" in part.why) for part in uncut] == [("the channels of parted", True)]
    places = {(tie.tensor, tie.dim): tuple(tie.places.shape) for tie in axes[0].ties}
    assert places["twice.weight", 0] == places["mixed.weight", 1] == places["blocks.2.scale", 0] == (8, 2)
    assert {(tie.tensor, tie.places.shape[1]) for tie in axes[-1].ties if tie.reads} == {("head.weight", 4)}
    assert {axis.name for axis in axes} <= anatomy.sizes.keys()
    assert cuts_as_it_masks(network, example, anatomy, [axis.name for axis in axes])
    assert [depth.blocks for depth in anatomy.depths] == [("blocks.0", "blocks.1", "blocks.2")]
    without = anatomy.cut(network, {"blocks.depth": (1,)})
    assert torch.equal(outputs(without, example), outputs(anatomy.mask(network, {"blocks.depth": (1,)}), example))


def test_a_network_whose_attention_torch_pruning_gets_lost_in_is_cut_all_the_same():
    network, example, anatomy = opened(timm.create_model("visformer_tiny", img_size=32, depth=(2, 1, 1), num_classes=5))
    assert [axis.name for axis in anatomy.axes if axis.role == "width"] == [
        "stem.0.channels",
        "patch_embed1.proj.channels",
        "patch_embed2.proj.channels",
        "patch_embed3.proj.channels",
    ]
    assert cuts_as_it_masks(network, example, anatomy, anatomy.sizes.keys() - {depth.name for depth in anatomy.depths})
    why = {part.what: part.why for part in anatomy.uncut}
    assert why["the channels of stage2.0.attn.qkv"] == "torch's view takes them apart or joins them"


class Within(nn.Module):
    """A list of residual blocks, the last of which has such a list inside, as SwiftFormer's has."""

    def __init__(self):
        super().__init__()
        blocks = [Twofold.Block(8) for _ in range(4)]
        inside = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sequential(*(Plain(block) for block in blocks[2:])))
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.blocks = nn.Sequential(*(Plain(block) for block in blocks[:2]), inside)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Plain(nn.Module):
    """A block that is told nothing but its map."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, maps):
        return self.block(maps, maps.shape[-1])


def test_blocks_inside_a_list_that_loses_others_leave_too():
    torch.manual_seed(0)
    network, example, anatomy = opened(Within())
    assert [depth.blocks for depth in anatomy.depths] == [("blocks.0", "blocks.1"), ("blocks.2.1.0", "blocks.2.1.1")]
    kept = {"blocks.depth": (1,), "blocks.2.1.depth": (0,)}
    assert torch.equal(outputs(anatomy.cut(network, kept), example), outputs(anatomy.mask(network, kept), example))
    assert anatomy.left(network, kept).depths[1].blocks == ("blocks.1.1.0",)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "poolformer_s12"])
def test_it_finds_what_torch_pruning_finds(name):
    network, example, anatomy = opened(timm.create_model(name, num_classes=5))
    axes, uncut = followed(network, example)
    places = {axis.name: {(t.tensor, t.dim): t.places.tolist() for t in axis.ties} for axis in axes}
    for axis in anatomy.axes:
        assert places[axis.name] == {(t.tensor, t.dim): t.places.tolist() for t in axis.ties}
        assert axis.inexact == next(one.inexact for one in axes if one.name == axis.name)
    assert len(axes) == len(anatomy.axes)
    assert uncut == []
