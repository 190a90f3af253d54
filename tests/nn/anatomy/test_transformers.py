import dataclasses

import pytest
import timm
import torch
import torchvision
import transformers

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import outputs, sound_part
from kdnas.nn.scaling_norms import norms_as_scales

WORDS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}
DISTILBERT = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100, "pad_token_id": 0}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 64}
GROUPED = {**WORDS, "num_key_value_heads": 2}
OPT = {name: size for name, size in WORDS.items() if name != "intermediate_size"}
OPT |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
SMALL = {"n_layer": 3, "num_hidden_layers": 3, "n_head": 4, "num_attention_heads": 4, "vocab_size": 100}
TIMM = {"img_size": 32, "patch_size": 8, "depth": 3, "num_heads": 4, "num_classes": 5}


def hugging_face(model, config, settings):
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**settings))


NETWORKS = {
    "bert": ("bert", hugging_face("BertForSequenceClassification", "BertConfig", WORDS)),
    "roberta": ("bert", hugging_face("RobertaForSequenceClassification", "RobertaConfig", WORDS)),
    "electra": (
        "bert",
        hugging_face("ElectraForSequenceClassification", "ElectraConfig", {**WORDS, "embedding_size": 16}),
    ),
    "distilbert": ("bert", hugging_face("DistilBertForSequenceClassification", "DistilBertConfig", DISTILBERT)),
    "gpt2": ("gpt", hugging_face("GPT2LMHeadModel", "GPT2Config", {**GPT2, "bos_token_id": 1, "eos_token_id": 2})),
    "llama": ("gpt", hugging_face("LlamaForCausalLM", "LlamaConfig", GROUPED)),
    "llama_tied": ("gpt", hugging_face("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "tie_word_embeddings": True})),
    "mistral": ("gpt", hugging_face("MistralForCausalLM", "MistralConfig", GROUPED)),
    "qwen2": ("gpt", hugging_face("Qwen2ForCausalLM", "Qwen2Config", GROUPED)),
    "qwen3": ("gpt", hugging_face("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8})),
    "gemma": ("gpt", hugging_face("GemmaForCausalLM", "GemmaConfig", {**GROUPED, "head_dim": 8})),
    "olmo2": ("gpt", hugging_face("Olmo2ForCausalLM", "Olmo2Config", GROUPED)),  # its norms are over all heads
    "cohere": ("gpt", hugging_face("CohereForCausalLM", "CohereConfig", GROUPED)),
    "phi": ("gpt", hugging_face("PhiForCausalLM", "PhiConfig", GROUPED)),
    "phi3": ("gpt", hugging_face("Phi3ForCausalLM", "Phi3Config", GROUPED)),
    "starcoder2": ("gpt", hugging_face("Starcoder2ForCausalLM", "Starcoder2Config", GROUPED)),
    "opt": ("gpt", hugging_face("OPTForCausalLM", "OPTConfig", OPT)),
    "opt_projected": ("gpt", hugging_face("OPTForCausalLM", "OPTConfig", {**OPT, "word_embed_proj_dim": 16})),
    "neox": ("gpt", hugging_face("GPTNeoXForCausalLM", "GPTNeoXConfig", WORDS)),
    "gptj": ("gpt", hugging_face("GPTJForCausalLM", "GPTJConfig", {**GPT2, "rotary_dim": 4})),
    "bloom": ("gpt", hugging_face("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, **SMALL})),
    "mpt": ("gpt", hugging_face("MptForCausalLM", "MptConfig", {"d_model": 32, "n_layers": 3, "n_heads": 4, **SMALL})),
    "falcon": ("gpt", hugging_face("FalconForCausalLM", "FalconConfig", {"hidden_size": 32, **SMALL})),
    "torchvision_vit": ("multihead", lambda: torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=5)),
    "hf_vit": ("vit", hugging_face("ViTForImageClassification", "ViTConfig", PATCHES)),
    "hf_deit": ("vit", hugging_face("DeiTForImageClassificationWithTeacher", "DeiTConfig", PATCHES)),
    "timm_vit": ("vit", lambda: timm.create_model("vit_tiny_patch16_224", embed_dim=48, **TIMM)),
    "timm_deit": ("vit", lambda: timm.create_model("deit_tiny_distilled_patch16_224", embed_dim=48, **TIMM)),
    "timm_deit3": ("vit", lambda: timm.create_model("deit3_small_patch16_224", embed_dim=48, **TIMM)),
    "timm_eva": ("vit", lambda: timm.create_model("vit_small_patch16_dinov3", embed_dim=64, **TIMM)),
}
WHOLE_HEADS = ("Bloom", "Mpt", "Falcon")
"""Of positions told by slopes that follow the number of heads, or with one head of keys for all queries."""


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """(kind, network with weights of some size, example, its sound anatomy)."""
    kind, make = NETWORKS[request.param]
    torch.manual_seed(0)
    network = make().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    size = 16 if request.param.startswith("hf") else 32
    example = torch.randn(2, 3, size, size) if kind in ("vit", "multihead") else torch.randint(3, 100, (2, 10))
    return kind, network, example, sound_part(read_anatomy(network, example), network, example)


def halves(anatomy, *, exact):
    sizes = {axis.name: max(axis.size // 2, 1) for axis in anatomy.axes if not (exact and axis.inexact)}
    return sizes | {depth.name: 2 for depth in anatomy.depths}


def test_heads_neurons_layers_and_width_are_found(case):
    kind, network, _, anatomy = case
    assert anatomy.kind == kind
    roles = [axis.role for axis in anatomy.axes]
    assert roles.count("inner") == 3
    name = type(network).__name__
    if name.startswith(WHOLE_HEADS):
        assert (roles.count("width"), roles.count("heads")) == (1, 0)
        assert any(part.what.endswith(".heads") for part in anatomy.uncut)
    elif kind == "multihead":
        assert roles.count("width") == roles.count("heads") == 0
        assert {part.what for part in anatomy.uncut} >= {"encoder.layers.encoder_layer_0.heads", "width"}
    elif "Eva" in name:  # its attention takes the width of its heads from that of its input
        assert roles.count("width") == roles.count("heads") == 0
        assert {part.what for part in anatomy.uncut} >= {"blocks.0.heads", "width"}
    else:
        assert (roles.count("width"), roles.count("heads")) == (1, 3)
    assert [len(depth.blocks) for depth in anatomy.depths] == [3]


def test_the_whole_network_is_cut_out_bit_for_bit(case):
    _, network, example, anatomy = case
    whole = anatomy.cut(network, anatomy.prefix(anatomy.sizes))
    assert torch.equal(outputs(whole, example), outputs(network, example))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in network.state_dict().items())


def test_a_cut_network_computes_what_the_masked_one_does(case):
    _, network, example, anatomy = case
    kept = anatomy.prefix(halves(anatomy, exact=True))
    cut, masked = outputs(anatomy.cut(network, kept), example), outputs(anatomy.mask(network, kept), example)
    assert torch.allclose(cut, masked, atol=3e-5)
    assert not torch.allclose(cut, outputs(network, example), atol=1e-2)


def test_any_choice_of_units_is_cut_as_it_is_masked(case):
    _, network, example, anatomy = case
    generator = torch.Generator().manual_seed(1)
    kept = {
        axis.name: sorted(torch.randperm(axis.size, generator=generator)[: max(axis.size // 2, 1)].tolist())
        for axis in anatomy.axes
        if not axis.inexact
    }
    assert any(units != list(range(len(units))) for units in kept.values())
    cut, masked = outputs(anatomy.cut(network, kept), example), outputs(anatomy.mask(network, kept), example)
    assert torch.allclose(cut, masked, atol=1e-5)


def test_a_cut_under_norms_is_exact_once_these_are_taken_as_scales(case):
    _, network, example, anatomy = case
    wide = example.double() if example.is_floating_point() else example
    kept = anatomy.prefix(halves(anatomy, exact=False))
    cut, masked = anatomy.cut(network, kept).double(), anatomy.mask(network, kept).double()
    apart = (outputs(cut, wide) - outputs(masked, wide)).abs().max()
    with norms_as_scales(cut, masked):
        ours, theirs = outputs(cut, wide), outputs(masked, wide)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    if any(axis.inexact for axis in anatomy.axes):
        assert apart > 1e-3


def test_a_width_that_is_cut_in_the_wrong_places_is_left_whole_though_it_runs():
    torch.manual_seed(0)
    network, example = NETWORKS["hf_vit"][1]().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    anatomy = read_anatomy(network, example)
    width = anatomy.by_name["width"]
    wrong = [
        dataclasses.replace(tie, places=tie.places.roll(1, 0)) if tie.tensor.endswith("1.mlp.fc1.weight") else tie
        for tie in width.ties
    ]
    assert len([tie for tie, right in zip(wrong, width.ties, strict=True) if tie is not right]) == 1
    axes = [dataclasses.replace(axis, ties=tuple(wrong)) if axis is width else axis for axis in anatomy.axes]
    outputs(anatomy.cut(network, {"width": range(16)}), example)
    found = sound_part(dataclasses.replace(anatomy, axes=tuple(axes)), network, example)
    assert "width" not in found.by_name
    assert [part.what for part in found.uncut] == ["width"]
    assert "differ from the masked one" in found.uncut[0].why
    assert "width" in sound_part(anatomy, network, example).by_name


def test_tied_weights_stay_tied_and_nothing_is_shared_with_the_teacher(case):
    _, network, _, anatomy = case
    cut = anatomy.cut(network, anatomy.prefix(halves(anatomy, exact=False)))
    theirs = {parameter.data_ptr() for parameter in network.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in cut.parameters()}
    assert len(list(cut.parameters())) == len(list(network.parameters())) - sum(
        len(list(network.get_submodule(block).parameters()))
        for depth in anatomy.depths
        for index, block in enumerate(depth.blocks)
        if index not in anatomy.prefix({depth.name: 2})[depth.name]
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "phi3", "opt", "neox", "gptj"])
def test_a_cut_decoder_generates_with_its_cache_as_without(name):
    torch.manual_seed(0)
    network = NETWORKS[name][1]().eval()
    example = torch.randint(3, 100, (2, 6))
    anatomy = read_anatomy(network, example)
    cut = anatomy.cut(network, anatomy.prefix(halves(anatomy, exact=False)))
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        assert torch.equal(
            cut.generate(example, use_cache=True, **settings), cut.generate(example, use_cache=False, **settings)
        )


WINDOWED = {**GROUPED, "num_hidden_layers": 4, "sliding_window": 4}
UPPER = {**WINDOWED, "use_sliding_window": True, "max_window_layers": 2}
NEO = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "vocab_size": 100, "window_size": 4}
NEO |= {"attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64, "eos_token_id": 2}
WINDOWS = {
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**WINDOWED, "head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**WINDOWED, "head_dim": 8, "sliding_window_pattern": 2}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", UPPER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**UPPER, "head_dim": 8}),
    "mistral": ("MistralForCausalLM", "MistralConfig", WINDOWED),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", NEO),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_layers_of_a_decoder_whose_layers_attend_within_windows_keep_their_kind(name, tmp_path):
    torch.manual_seed(0)
    network = hugging_face(*WINDOWS[name])().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    example = torch.randint(3, 100, (2, 12))  # three windows long
    anatomy = sound_part(read_anatomy(network, example), network, example)
    kinds = "attention_layers" if name == "gpt_neo" else "layer_types"
    types = getattr(network.config, kinds, None)
    assert [len(depth.blocks) for depth in anatomy.depths] == [4]
    for left in ([1, 2], [0, 3], [2], [1, 2, 3]):
        kept = {anatomy.depths[0].name: left}
        cut, masked = anatomy.cut(network, kept), anatomy.mask(network, kept)
        expected = outputs(masked, example)
        assert torch.allclose(outputs(cut, example), expected, atol=1e-5)
        settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        made = [net.generate(example, use_cache=cache, **settings) for net in (cut, masked) for cache in (True, False)]
        assert all(torch.equal(made[0], other) for other in made[1:])
        assert cut.config.num_hidden_layers == len(left)
        assert not types or getattr(cut.config, kinds) == [types[layer] for layer in left]
        if name == "gpt_neo":  # whose configuration tells kinds of layers twice, once in runs
            continue
        cut.save_pretrained(tmp_path)
        again = type(network).from_pretrained(tmp_path).eval()
        assert torch.allclose(outputs(again, example), expected, atol=1e-5)
    assert getattr(network.config, kinds, None) == types  # the teacher's own is as it was


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama", "qwen3", "hf_vit", "phi3", "opt", "neox"])
def test_a_uniform_student_opens_again_as_its_library_does(name, tmp_path):
    torch.manual_seed(0)
    kind, make = NETWORKS[name]
    network = make().eval()
    example = torch.randn(2, 3, 16, 16) if kind == "vit" else torch.randint(3, 100, (2, 10))
    anatomy = read_anatomy(network, example)
    sizes = {axis.name: axis.size // 2 for axis in anatomy.axes if axis.role == "inner"}
    cut = anatomy.cut(network, anatomy.prefix(sizes | {depth.name: 2 for depth in anatomy.depths}))
    cut.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    assert torch.equal(outputs(again, example), outputs(cut, example))
