"""Swin transformers: windows, tables of relative positions, and widths that differ by stage."""

import pytest
import torch
import transformers
from timm.models.swin_transformer import SwinTransformer

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cut_costs import CutCosts
from kdnas.nn.cutting import outputs, sound_part
from kdnas.nn.scaling_norms import norms_as_scales
from kdnas.nn.tracing import parameter_count, traced_macs

SIZES = {"depths": [2, 3], "num_heads": [2, 4], "window_size": 4, "embed_dim": 16, "patch_size": 4}
NETWORKS = {
    "timm": lambda: SwinTransformer(img_size=32, num_classes=5, **SIZES),
    "timm, squares that do not come out even": lambda: SwinTransformer(
        img_size=28, num_classes=5, head_dim=4, **{**SIZES, "depths": [1, 2], "window_size": 3}
    ),
    "hugging face": lambda: transformers.SwinForImageClassification(
        transformers.SwinConfig(image_size=32, num_labels=5, **SIZES)
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """(network with weights of some size, example, its sound anatomy)."""
    torch.manual_seed(0)
    network = NETWORKS[request.param]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    size = 28 if "even" in request.param else 32
    example = torch.randn(2, 3, size, size)
    return network, example, sound_part(read_anatomy(network, example), network, example)


def kept_of(anatomy, seed, *, exact):
    generator = torch.Generator().manual_seed(seed)

    def some(size, least=1):
        count = int(torch.randint(least, size + 1, (1,), generator=generator))
        return sorted(torch.randperm(size, generator=generator)[:count].tolist())

    axes = {axis.name: some(axis.size) for axis in anatomy.axes if not (exact and axis.inexact)}
    return axes | {depth.name: some(len(depth.blocks)) for depth in anatomy.depths}


def test_every_stage_has_its_own_width_and_depth(case):
    _, _, anatomy = case
    assert anatomy.kind == "swin"
    assert not anatomy.uncut
    assert [axis.size for axis in anatomy.axes if axis.role == "width"] == [16, 32]
    assert [axis.stage for axis in anatomy.axes if axis.role == "width"] == [1, 2]
    layers = [len(depth.blocks) for depth in anatomy.depths]
    assert layers in ([2, 3], [1, 2])
    assert [axis.size for axis in anatomy.axes if axis.role == "heads"] == [2] * layers[0] + [4] * layers[1]


def test_the_whole_network_is_cut_out_bit_for_bit(case):
    network, example, anatomy = case
    whole = anatomy.cut(network, anatomy.prefix(anatomy.sizes))
    assert torch.equal(outputs(whole, example), outputs(network, example))


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_network_computes_what_the_masked_one_does(case, seed):
    network, example, anatomy = case
    kept = kept_of(anatomy, seed, exact=True)
    cut, masked = outputs(anatomy.cut(network, kept), example), outputs(anatomy.mask(network, kept), example)
    assert torch.allclose(cut, masked, atol=1e-5)
    assert not torch.allclose(cut, outputs(network, example), atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_widths_are_cut_where_they_lie_side_by_side(case, seed):
    network, example, anatomy = case
    kept = kept_of(anatomy, seed, exact=False)
    cut, masked = anatomy.cut(network, kept).double(), anatomy.mask(network, kept).double()
    with norms_as_scales(cut, masked):
        ours, theirs = outputs(cut, example.double()), outputs(masked, example.double())
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_costs_in_closed_form_are_those_that_are_counted(case):
    network, example, anatomy = case
    costs = CutCosts(anatomy, network, example)
    for seed in range(3):
        kept = kept_of(anatomy, seed, exact=False)
        sizes = {name: len(units) for name, units in kept.items()}
        cut = anatomy.cut(network, anatomy.prefix(sizes))
        price = costs.price(sizes)
        assert (price.macs, price.params) == (traced_macs(cut, example[:1]), parameter_count(cut))


def test_a_hugging_face_student_of_fewer_layers_and_neurons_opens_again(tmp_path):
    torch.manual_seed(0)
    network, example = NETWORKS["hugging face"]().eval(), torch.randn(2, 3, 32, 32)
    anatomy = read_anatomy(network, example)
    sizes = {axis.name: axis.size // 2 for axis in anatomy.axes if axis.role == "inner"}
    # Every second layer of a stock network shifts its windows: what stays must stay so.
    depths = {anatomy.depths[0].name: [0], anatomy.depths[1].name: [0, 1]}
    cut = anatomy.cut(network, {**anatomy.prefix(sizes), **depths})
    cut.save_pretrained(tmp_path)
    again = transformers.SwinForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(outputs(again, example), outputs(cut, example))
