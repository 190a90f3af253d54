"""What a Hugging Face folder tells of a student: opened by transformers it answers as the student, or it is refused."""

import sys
from pathlib import Path

import pytest
import torch
import transformers

from kdnas.exporters.huggingface import described, quiet_loading, why_not
from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import outputs, sound_part
from kdnas.nn.origin import Cut, Origin, cut_source

sys.path.insert(0, str(Path(__file__).parents[1] / "nn" / "anatomy"))
from test_layers import CASES
from test_transformers import GROUPED, NETWORKS, WINDOWS, hugging_face

KINDS = {name: make for name, (_, make) in NETWORKS.items() if not name.startswith(("timm", "torchvision"))}
KINDS |= {f"{name}_in_windows": hugging_face(*made) for name, made in WINDOWS.items()}
KINDS |= {name: hugging_face(*made[:3]) for name, made in CASES.items()}
QUICK = ("bart", "bert", "gemma", "gpt_neo_in_windows", "hf_vit", "llama", "mpnet", "phi3", "t5")
UNTOLD = {
    "electra": ("embeddings_project",),
    "opt_projected": ("project_out",),
    "bloom": ("query_key_value", "dense_h_to_4h"),
    "mpt": ("Wqkv", "up_proj"),
    "falcon": ("query_key_value",),
}
"""What the configuration of a kind has no number for, or none that kdnas finds: heads as wide as before in a narrower
stream, a projection onto a stream as wide as the words, an MLP of another share."""


def opened(name):
    """(network, example, its sound anatomy)."""
    torch.manual_seed(0)
    network = KINDS[name]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    example = torch.randn(2, 3, 16, 16) if name.startswith("hf") else torch.randint(3, 100, (2, 12))
    if example.ndim == 2:
        example[:, -1] = 2
    return network, example, sound_part(read_anatomy(network, example), network, example)


def cut_to(network, example, anatomy, sizes):
    """(student, what it was cut from)."""
    kept = anatomy.prefix(sizes)
    config = network.config
    inputs = ("pixel_values",) if example.is_floating_point() else ("input_ids",)
    origin = Origin("transformers", type(network).__name__, config.to_diff_dict(), type(config).__name__, inputs)
    return anatomy.cut(network, kept).eval(), Cut(origin, network, anatomy, kept, example)


def sizes_of(anatomy, *roles):
    sizes = {axis.name: max(axis.size // 2, 1) for axis in anatomy.axes if axis.role in roles}
    return sizes | {depth.name: len(depth.blocks) - 1 for depth in anatomy.depths if "depth" in roles}


def reopened(student, example, folder):
    """Return what transformers gives that opens the student's folder."""
    with quiet_loading():
        described(student, example)[0].save_pretrained(folder)
        again = type(student).from_pretrained(folder).eval()
    return outputs(again, example)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in KINDS])
def test_a_uniform_student_opens_as_what_it_is_or_is_refused(name, tmp_path):
    network, example, anatomy = opened(name)
    for roles in (("width", "inner", "heads", "depth"), ("depth",), ("inner",), ("width",), ("heads",)):
        sizes = sizes_of(anatomy, *roles)
        if not sizes:
            continue
        student, cut = cut_to(network, example, anatomy, sizes)
        if why := why_not(cut, student):
            known = any(part in why for part in UNTOLD.get(name, ()))
            assert roles in (("width",), ("heads",)) or known, (roles, why)
            continue
        expected = outputs(student, example)
        found = reopened(student, example, tmp_path / "_".join(roles))
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), roles


def test_a_scale_that_follows_the_width_goes_into_the_weights(tmp_path):
    network, example, anatomy = opened("gemma")
    student, cut = cut_to(network, example, anatomy, sizes_of(anatomy, "width"))
    assert student.get_submodule("model.embed_tokens").scalar_embed_scale == pytest.approx(32**0.5)
    assert why_not(cut, student) == ""
    told, _ = described(student, example)
    assert told.get_submodule("model.embed_tokens").scalar_embed_scale == 4.0
    assert told.lm_head.weight is told.get_submodule("model.embed_tokens").weight
    expected = outputs(student, example)
    assert (reopened(student, example, tmp_path) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_a_library_computes_otherwise_is_refused_by_the_number_that_differs():
    network, example, anatomy = opened("llama")
    student, cut = cut_to(network, example, anatomy, sizes_of(anatomy, "inner"))
    student.get_submodule("model.layers.0.self_attn").scaling = 0.5
    assert "model.layers.0.self_attn.scaling of the student is 0.5, and" in why_not(cut, student)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_student_of_a_teacher_in_half_precision_is_told_in_its_own(name, tmp_path):
    network, example, anatomy = opened(name)
    network.config.dtype = torch.float16  # as a teacher's folder says that holds halves
    student, cut = cut_to(network, example, anatomy, sizes_of(anatomy, "inner"))
    assert why_not(cut, student) == ""
    assert torch.equal(reopened(student, example, tmp_path), outputs(student, example))
    assert network.config.dtype == torch.float16


WORDS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32}


def test_the_words_of_a_narrower_network_are_scaled_as_its_library_scales_them(tmp_path):
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, **WORDS}
    KINDS["biogpt"] = hugging_face("BioGptForCausalLM", "BioGptConfig", settings)
    network, example, anatomy = opened("biogpt")
    student, cut = cut_to(network, example, anatomy, sizes_of(anatomy, "width", "heads"))
    assert why_not(cut, student) == ""
    expected = outputs(student, example)
    assert (reopened(student, example, tmp_path) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_code_cuts_the_positions_that_no_file_of_weights_holds():
    settings = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, **WORDS}
    KINDS["xglm"] = hugging_face("XGLMForCausalLM", "XGLMConfig", settings)
    network, example, anatomy = opened("xglm")
    student, cut = cut_to(network, example, anatomy, sizes_of(anatomy, "width", "depth"))
    made = {}
    exec(cut_source(cut, student), made)
    again = made["build_student"]().eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(outputs(again, example), outputs(student, example))


def test_code_gives_layers_of_other_sizes_a_configuration_each():
    network, example, anatomy = opened("phi3")
    heads = [axis for axis in anatomy.axes if axis.role == "heads"]
    student, cut = cut_to(network, example, anatomy, {heads[1].name: 1})
    assert "one size for all layers" in why_not(cut, student)
    made = {}
    exec(cut_source(cut, student), made)
    again = made["build_student"]().eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(outputs(again, example), outputs(student, example))
    counted = [layer.self_attn.config.num_attention_heads for layer in again.model.layers]
    assert counted == [4, 2, 4]


def test_transformers_own_switches_are_as_they_were():
    before = transformers.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    network, example, anatomy = opened("llama")
    student, cut = cut_to(network, example, anatomy, sizes_of(anatomy, "depth"))
    assert why_not(cut, student) == ""
    assert (transformers.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()) == before
    assert GROUPED["num_hidden_layers"] == network.config.num_hidden_layers == 3
