"""Transformers of makes that nobody listed: who does what in their layers is inferred, and tried out."""

import sys
from pathlib import Path

import pytest
import torch
from timm.models import beit, cait, convit, mlp_mixer

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cut_costs import CutCosts
from kdnas.nn.cutting import outputs, sound_part
from kdnas.nn.scaling_norms import norms_as_scales
from kdnas.nn.tracing import parameter_count, traced_macs

sys.path.insert(0, str(Path(__file__).parent))
from test_transformers import GROUPED, PATCHES, WORDS, halves, hugging_face

BOTH = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4, "vocab_size": 100}
BOTH |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 100, "eos_token_id": 2}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
RELATIVE |= {"norm_rel_ebd": "layer_norm", "share_att_key": True}
CASES = {
    # heads, neurons and widths by number; the blocks of every stage
    "deberta_v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", WORDS, (3, 3, 1), [3]),
    "deberta_v3": ("DebertaV2ForSequenceClassification", "DebertaV2Config", {**WORDS, **RELATIVE}, (3, 3, 1), [3]),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig", WORDS, (3, 3, 1), [2]),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", WORDS, (1, 3, 1), [3]),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**WORDS, "embedding_size": 16}, (1, 1, 1), []),
    "glm": ("GlmForCausalLM", "GlmConfig", {**GROUPED, "head_dim": 8}, (3, 3, 1), [3]),
    "bart": ("BartForSequenceClassification", "BartConfig", {**BOTH, "eos_token_id": 2}, (9, 6, 1), [3, 3]),
    "t5": ("T5ForSequenceClassification", "T5Config", T5, (1, 6, 1), [2, 2]),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(network with weights of some size, example, its sound anatomy, what is expected of it)."""
    model, config, settings, *expected = CASES[request.param]
    torch.manual_seed(0)
    network = hugging_face(model, config, settings)().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    example = torch.randint(3, 100, (2, 10))
    example[:, -1] = 2  # the end, which some read their answer at
    return network, example, sound_part(read_anatomy(network, example), network, example), expected


def test_heads_neurons_layers_and_width_are_found(case):
    _, _, anatomy, (numbers, blocks) = case
    assert anatomy.kind == "layers"
    roles = [axis.role for axis in anatomy.axes]
    assert (roles.count("heads"), roles.count("inner"), roles.count("width")) == numbers
    assert [len(depth.blocks) for depth in anatomy.depths] == blocks


def test_a_cut_network_computes_what_the_masked_one_does(case):
    network, example, anatomy, _ = case
    sizes = {name: size for name, size in halves(anatomy, exact=True).items() if name in anatomy.by_name}
    sizes |= {depth.name: 1 for depth in anatomy.depths}
    kept = anatomy.prefix(sizes)
    cut, masked = outputs(anatomy.cut(network, kept), example), outputs(anatomy.mask(network, kept), example)
    assert torch.allclose(cut, masked, atol=3e-5)
    assert not torch.allclose(cut, outputs(network, example), atol=1e-3)


def test_a_width_under_norms_is_exact_once_these_are_taken_as_scales(case):
    network, example, anatomy, _ = case
    kept = anatomy.prefix({"width": 12})
    cut, masked = anatomy.cut(network, kept).double(), anatomy.mask(network, kept).double()
    with norms_as_scales(cut, masked):
        assert torch.allclose(outputs(cut, example), outputs(masked, example), rtol=1e-5, atol=1e-5)


def test_costs_in_closed_form_are_those_that_are_counted(case):
    network, example, anatomy, _ = case
    costs = CutCosts(anatomy, network, example)
    sizes = {axis.name: max(axis.size // 2, 1) for axis in anatomy.axes} | {d.name: 1 for d in anatomy.depths}
    cut, price = anatomy.cut(network, anatomy.prefix(sizes)), costs.price(sizes)
    assert (price.macs, price.params) == (traced_macs(cut, example[:1]), parameter_count(cut))


def test_one_layer_that_serves_again_and_again_says_why_none_can_go():
    network = hugging_face(*CASES["albert"][:3])()
    found = {part.what: part.why for part in read_anatomy(network, torch.randint(3, 100, (2, 10))).uncut}
    assert "one layer serves again and again" in found["albert.encoder.albert_layer_groups.depth"]


def test_layers_that_choose_experts_may_go_and_lose_heads_but_keep_their_width():
    mixed = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
    network = hugging_face("Qwen3MoeForCausalLM", "Qwen3MoeConfig", mixed)().eval()
    example = torch.randint(3, 100, (2, 10))
    anatomy = sound_part(read_anatomy(network, example), network, example)
    assert {axis.role for axis in anatomy.axes} == {"heads"}
    assert "width" in [part.what for part in anatomy.uncut]
    sizes = {axis.name: 1 for axis in anatomy.axes} | {anatomy.depths[0].name: 2}
    cut, price = anatomy.cut(network, anatomy.prefix(sizes)), CutCosts(anatomy, network, example).price(sizes)
    assert (price.macs, price.params) == (traced_macs(cut, example[:1]), parameter_count(cut))


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_classes": 5}


@pytest.mark.parametrize(
    ("made", "roles", "blocks"),
    [
        (mlp_mixer.MlpMixer, {"inner", "width"}, [3]),
        (beit.Beit, {"inner"}, [3]),
        (cait.Cait, {"inner"}, [3, 2]),
    ],
)
def test_a_network_of_images_that_is_layers_of_one_width_is_read_by_its_layers(made, roles, blocks):
    blocks_of_it = {"num_blocks": 3} if made is mlp_mixer.MlpMixer else {"depth": 3, "num_heads": 4}
    torch.manual_seed(0)
    network = made(**SMALL, **blocks_of_it).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    example = torch.randn(2, 3, 32, 32)
    anatomy = sound_part(read_anatomy(network, example), network, example)
    assert anatomy.kind == "layers"
    assert {axis.role for axis in anatomy.axes} == roles
    assert [len(depth.blocks) for depth in anatomy.depths] == blocks
    kept = anatomy.prefix({axis.name: 8 for axis in anatomy.axes if axis.role == "inner"})
    cut, masked = outputs(anatomy.cut(network, kept), example), outputs(anatomy.mask(network, kept), example)
    assert torch.allclose(cut, masked, atol=1e-5)


def test_layers_of_an_attention_of_unknown_make_are_no_neurons():
    torch.manual_seed(0)
    network, example = convit.ConVit(**SMALL, depth=2, num_heads=4).eval(), torch.randn(2, 3, 32, 32)
    anatomy = sound_part(read_anatomy(network, example), network, example)
    assert [axis.name for axis in anatomy.axes] == ["blocks.0.inner", "blocks.1.inner"]
    assert {tie.tensor for tie in anatomy.axes[0].ties if tie.reads} == {"blocks.0.mlp.fc2.weight"}
    assert anatomy.left_whole["its attention is of no make that kdnas knows"] == ["blocks.0.heads", "blocks.1.heads"]


PICTURES = {
    "beit": ("BeitForImageClassification", "BeitConfig", PATCHES),
    "clip": ("CLIPForImageClassification", "CLIPConfig", {"vision_config": PATCHES, "projection_dim": 32}),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", PATCHES),
    "convnextv2": (
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_hugging_face_network_of_images_is_cut_in_all_that_it_has(name):
    torch.manual_seed(0)
    network = hugging_face(*PICTURES[name])().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    size = 32 if name == "convnextv2" else PATCHES["image_size"]
    example = torch.randn(2, 3, size, size)
    anatomy = sound_part(read_anatomy(network, example), network, example)
    assert anatomy.uncut == ()
    assert {axis.role for axis in anatomy.axes} == {"inner", "width"} | ({"heads"} if name != "convnextv2" else set())
    assert outputs(anatomy.cut(network, anatomy.prefix(dict.fromkeys(anatomy.sizes, 1))), example).isfinite().all()


def test_a_kind_that_stumbles_over_a_network_is_passed_over(monkeypatch):
    from kdnas.nn.anatomy import ANATOMIES

    def stumbles(network, example):
        raise RuntimeError("shape '[-1, 3]' is invalid")

    network = hugging_face("ViTForImageClassification", "ViTConfig", PATCHES)()
    told = ANATOMIES.get
    monkeypatch.setattr(ANATOMIES, "get", lambda name: stumbles if name == "bert" else told(name))
    assert read_anatomy(network, torch.randn(2, 3, 16, 16)).kind == "vit"


def test_places_of_as_many_tokens_as_the_stream_is_wide_are_no_part_of_it():
    network = hugging_face("BertForSequenceClassification", "BertConfig", {**WORDS, "max_position_embeddings": 32})()
    assert network.bert.embeddings.position_ids.shape[-1] == network.config.hidden_size
    example = torch.randint(3, 100, (2, 30))
    anatomy = sound_part(read_anatomy(network.eval(), example), network, example)
    assert outputs(anatomy.cut(network, anatomy.prefix({"width": 8})), example).shape == (2, 2)
