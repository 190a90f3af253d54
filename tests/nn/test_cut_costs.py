import dataclasses
import random
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.anatomy._ties import in_tie, out_ties, runs
from kdnas.nn.cut_costs import CutCosts
from kdnas.nn.cutting import Anatomy, Axis, outputs, sound_part
from kdnas.nn.tracing import fvcore_macs, parameter_count, traced_macs

sys.path.insert(0, str(Path(__file__).parent / "anatomy"))
from test_layers import CASES
from test_transformers import NETWORKS, hugging_face

ARCHS = 40
QUICK = ["bert", "gpt2", "llama_tied", "hf_vit", "timm_vit", "attended", "mobilenetv3_small_050"]
SLOW = [
    *(name for name in (*NETWORKS, *CASES) if name not in QUICK),
    *("resnet18", "tf_efficientnet_lite0", "convnext_atto", "densenet121", "regnetx_002", "ghostnet_050"),
    "coatnet_pico_rw_224",
]


class Attended(nn.Module):
    """Its products of activations follow the channels of two axes at once."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(12, 2)

    def forward(self, images):
        maps = self.first(images)
        both = torch.cat([self.left(maps), self.right(maps)], dim=1).flatten(2)
        return self.head((torch.softmax(both.transpose(1, 2) @ both, dim=-1) @ both.transpose(1, 2)).mean(1))


def case(name):
    """(network, example) of a kind; its products are those of several layers, with and without weights of their own."""
    torch.manual_seed(0)
    if name == "attended":
        return Attended().eval(), torch.randn(2, 3, 7, 7)
    if name in CASES:
        example = torch.randint(3, 100, (2, 10))
        example[:, -1] = 2
        return hugging_face(*CASES[name][:3])().eval(), example
    if name in NETWORKS:
        kind, make = NETWORKS[name]
        size, images = (16 if name.startswith("hf") else 32), kind in ("vit", "multihead")
        return make().eval(), torch.randn(2, 3, size, size) if images else torch.randint(3, 100, (2, 10))
    settings = {"img_size": 64} if name.startswith("coatnet") else {}
    return timm.create_model(name, num_classes=5, **settings).eval(), torch.randn(2, 3, 64, 64)


class Logits(nn.Module):
    """What fvcore can trace of a network: its logits alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        if hasattr(network, "set_attn_implementation"):
            network.set_attn_implementation("eager")
            network.config.use_cache = False

    def forward(self, inputs):
        return outputs(self.network, inputs)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_closed_form_is_what_both_counters_count_on_random_archs(name):
    network, example = case(name)
    anatomy = sound_part(read_anatomy(network, example), network, example)
    costs, draw = CutCosts(anatomy, network, example), random.Random(0)
    for index in range(ARCHS):
        sizes = {part: draw.randint(anatomy.by_name[part].least, size) for part, size in anatomy.sizes.items()}
        cut, price = anatomy.cut(network, anatomy.prefix(sizes)), costs.price(sizes)
        assert price.macs == traced_macs(cut, example[:1]), sizes
        assert price.params == parameter_count(cut), sizes
        if index in (0, ARCHS - 1):
            assert price.macs == fvcore_macs(Logits(cut), example[:1]), sizes
    assert seconds_of_a_price(costs, anatomy.sizes) < 5e-5


def test_blocks_leave_in_the_order_of_their_rank():
    network, example = case("bert")
    anatomy = read_anatomy(network, example)
    (depth,) = anatomy.depths
    ranked = dataclasses.replace(anatomy, depths=(dataclasses.replace(depth, order=(1, 2, 0)),))
    sizes = {axis.name: 9 + 10 * index for index, axis in enumerate(a for a in anatomy.axes if a.role == "inner")}
    costs = CutCosts(ranked, network, example)
    for blocks in (1, 2, 3):
        kept = {**sizes, depth.name: blocks}
        assert costs.price(kept).params == parameter_count(ranked.cut(network, ranked.prefix(kept)))


class Gated(nn.Module):
    """Tokens are mixed channel by channel, as in a gMLP: as many rows are multiplied as channels are left."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 10)
        self.tokens, self.last = nn.Linear(16, 16), nn.Linear(10, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        rows = self.stem(images).flatten(2).transpose(1, 2)
        gate = self.tokens(self.inner(rows).transpose(1, 2)).transpose(1, 2)
        return self.head((rows + self.last(torch.relu(gate))).mean(1))


def test_rows_that_a_layer_multiplies_follow_the_channels_that_they_are():
    torch.manual_seed(0)
    network, example = Gated().eval(), torch.randn(2, 3, 16, 16)
    layers = [*out_ties("inner", network.inner, runs(10, 1)), in_tie("last", network.last, runs(10, 1))]
    anatomy = Anatomy("own", (Axis("inner", "inner", 10, tuple(layers)),), ())
    assert sound_part(anatomy, network, example).sizes == {"inner": 10}
    costs = CutCosts(anatomy, network, example)
    for size in range(1, 11):
        cut = anatomy.cut(network, anatomy.prefix({"inner": size}))
        assert costs.price({"inner": size}).macs == traced_macs(cut, example[:1])


def seconds_of_a_price(costs, sizes):
    """The processor's, of the best of some tries."""
    times = []
    for _ in range(20):
        began = time.thread_time()
        for _ in range(50):
            costs.price(sizes)
        times.append((time.thread_time() - began) / 50)
    return min(times)


def test_a_network_that_does_other_operators_at_other_sizes_is_refused():
    class Fickle(Attended):
        def forward(self, images):
            maps = super().forward(images)
            return maps @ torch.ones(2, 2) if self.left.out_channels == 8 else maps

    network = Fickle().eval()
    example = torch.randn(2, 3, 7, 7)
    with pytest.raises(ValueError, match="other operators"):
        CutCosts(read_anatomy(network, example), network, example)
