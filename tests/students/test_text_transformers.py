"""Encoders and decoders of texts: against transformers' own networks, spellings, masks, cuts, what is inherited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdnas.core.task import TaskSpec, image_classification
from kdnas.core.text import language_modelling, text_classification
from kdnas.errors import ConfigError
from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.attention import attention_layers
from kdnas.nn.cutting import sound_part
from kdnas.nn.taps import EVERYTHING, Taps
from kdnas.nn.teacher import Teacher
from kdnas.nn.tracing import parameter_count
from kdnas.nn.weights import load_weights, save_weights
from kdnas.students import family_for

VOCABULARY, LENGTH = 40, 12
TEXTS = text_classification(LENGTH, VOCABULARY, 3, pairs=True)
RUNNING = language_modelling(LENGTH, VOCABULARY)
SMALL = {"width": 24, "depth": 3, "heads": 3, "head_size": 8, "mlp_ratio": 2}
TASKS = {"bert": TEXTS, "gpt": RUNNING}


def built(family: str, seed: int = 0, **choices: Any) -> Any:
    torch.manual_seed(seed)
    member = family_for(family, TASKS[family])
    return member.build(member.canonical({**SMALL, **choices})).eval()


def tokens(count: int = 4, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def test_gpt2_has_the_published_size() -> None:
    """Radford et al. 2019: 124 M parameters, here to the last one, when weights are tied."""
    family = family_for("gpt", language_modelling(1024, 50257))
    assert family.price(family.canonical({"width": 768, "depth": 12})).params == 124_439_808
    untied = family.price(family.canonical({"width": 768, "depth": 12, "tied": False}))
    assert untied.params == 124_439_808 + 50257 * 768


def test_bert_has_the_published_size() -> None:
    """Devlin et al. 2019: 110 M; without the pooler, which is no part of these students."""
    family = family_for("bert", text_classification(512, 30522, 2, pairs=True))
    assert family.price(family.canonical({"width": 768, "depth": 12})).params == 109_482_240 - 768 * 769 + 2 * 769


def test_a_decoder_computes_what_transformers_gpt2_does() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_inner": 48}
    config = transformers.GPT2Config(**sizes, activation_function="gelu")
    theirs, ours = transformers.GPT2LMHeadModel(config).eval(), built("gpt")
    with torch.no_grad():
        body = theirs.transformer
        ours.embeddings.word_embeddings.weight.copy_(body.wte.weight)
        ours.embeddings.position_embeddings.weight.copy_(body.wpe.weight)
        for mine, layer in zip(ours.stages, body.h, strict=True):
            parts = (mine.attention.q_proj, mine.attention.k_proj, mine.attention.v_proj)
            weights, biases = layer.attn.c_attn.weight.chunk(3, dim=1), layer.attn.c_attn.bias.chunk(3)
            for part, weight, bias in zip(parts, weights, biases, strict=True):
                part.weight.copy_(weight.T)
                part.bias.copy_(bias)
            for linear, transposed in (
                (mine.attention.o_proj, layer.attn.c_proj),
                (mine.mlp.fc1, layer.mlp.c_fc),
                (mine.mlp.fc2, layer.mlp.c_proj),
            ):
                linear.weight.copy_(transposed.weight.T)
                linear.bias.copy_(transposed.bias)
            mine.layernorm_before.load_state_dict(layer.ln_1.state_dict())
            mine.layernorm_after.load_state_dict(layer.ln_2.state_dict())
        ours.layernorm.load_state_dict(body.ln_f.state_dict())
        torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=1e-4, atol=1e-5)


def test_layers_with_norms_last_are_those_of_transformers_bert() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": LENGTH}
    config = transformers.BertConfig(**sizes, layer_norm_eps=1e-5)
    theirs, ours = transformers.BertModel(config, add_pooling_layer=False).eval(), built("bert")
    names = {
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key",
        "attention.v_proj": "attention.self.value",
        "attention.o_proj": "attention.output.dense",
        "layernorm_before": "attention.output.LayerNorm",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "layernorm_after": "output.LayerNorm",
    }
    mask = (torch.arange(LENGTH) < torch.tensor([[12], [7], [3], [1]])).long()
    segments = (torch.arange(LENGTH) >= 2).long().expand(4, -1)
    with torch.no_grad():
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
            getattr(ours.embeddings, name).load_state_dict(getattr(theirs.embeddings, name).state_dict())
        for mine, layer in zip(ours.stages, theirs.encoder.layer, strict=True):
            for name, other in names.items():
                mine.get_submodule(name).load_state_dict(layer.get_submodule(other).state_dict())
        hidden = theirs(tokens(), mask, segments).last_hidden_state * mask[..., None]
        expected = ours.classifier(hidden.sum(1) / mask.sum(1, keepdim=True))
        torch.testing.assert_close(ours(tokens(), mask, segments), expected, rtol=1e-4, atol=1e-5)


def test_spellings_of_one_network_are_one_arch() -> None:
    bert, gpt = (family_for(name, task) for name, task in TASKS.items())
    assert bert.canonical({**SMALL, "embedding_width": 24, "norm": "last", "length": 0}) == bert.canonical(SMALL)
    assert gpt.canonical({**SMALL, "embedding_width": 24, "tied": True}) == gpt.canonical(SMALL)
    assert gpt.canonical({**SMALL, "tied": False}) != gpt.canonical(SMALL)
    assert gpt.canonical({**SMALL, "depth": 4, "layer4.skip": True}) == gpt.canonical(SMALL)


@pytest.mark.parametrize(
    ("family", "task", "what"),
    [
        ("bert", image_classification((3, 8, 8), 2), "take tokens; image_classification has pixels"),
        ("bert", RUNNING, "a label of each text: they are not for language_modelling"),
        ("gpt", TEXTS, "predict every next token: they are not for text_classification"),
        ("vit", TEXTS, "students of vit take images"),
        ("resnet", RUNNING, "students of resnet take images"),
    ],
)
def test_tasks_that_a_family_is_not_for_are_refused(family: str, task: TaskSpec, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        family_for(family, task)


def test_what_padding_holds_changes_nothing() -> None:
    network = built("bert")
    mask = (torch.arange(LENGTH) < torch.tensor([[12], [7], [3], [1]])).long()
    padded = torch.where(mask > 0, tokens(), 7)
    torch.testing.assert_close(network(tokens(), mask), network(padded, mask))
    short = network(tokens()[2:3, :3])
    torch.testing.assert_close(network(tokens(), mask)[2:3], short)
    assert torch.isfinite(network(tokens(), torch.zeros_like(mask))).all()  # a text of nothing


def test_a_decoder_looks_only_back_and_takes_pieces() -> None:
    network = built("gpt", embedding_width=10)
    whole = network(tokens())
    torch.testing.assert_close(network(tokens()[:, :5]), whole[:, :5])
    with Taps(network, ("stages.0", "stages.2"), "classifier", needs=EVERYTHING) as tapped:
        outputs = tapped(tokens())
    assert outputs.logits.shape == (4 * LENGTH, VOCABULARY)
    assert [tuple(stage.shape) for stage in outputs.stages] == 2 * [(4, LENGTH, 24)]
    assert all(layer.causal and layer.heads == 3 for layer in outputs.attention)


@pytest.mark.parametrize("choices", [{}, {"embedding_width": 10}, {"norm": "first"}, {"tied": False}])
@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_it_can_be_cut_as_a_teacher(family: str, choices: dict[str, Any]) -> None:
    if choices.keys() <= {"embedding_width"} or (family == "bert") == ("norm" in choices):
        network = built(family, **choices)
        anatomy = sound_part(read_anatomy(network, tokens(2)), network, tokens(2))
        assert (anatomy.kind, anatomy.uncut) == (family, ())
        assert anatomy.sizes["width"] == 24
        assert [layer.causal for layer in attention_layers(network)] == 3 * [family == "gpt"]
        half = anatomy.cut(network, anatomy.prefix({"width": 12, "stages.depth": 2}))
        assert half(tokens()).shape == network(tokens()).shape


@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_a_student_inherits_from_a_teacher_of_its_family(family: str) -> None:
    task, network = TASKS[family], built(family, seed=7)
    own = family_for(family, task)
    entered = nn.Sequential(network)
    teacher = Teacher("own", entered, (), None, fingerprint="own", arch=own.canonical(SMALL))
    inputs = (tokens(32),)
    member = family_for(family, task, {"own": teacher}, lambda count: (inputs, torch.zeros(32).long()))
    assert torch.equal(member.inherit(own.canonical(SMALL)).eval()(tokens()), network(tokens()))
    smaller = member.inherit(own.canonical({**SMALL, "depth": 1, "width": 16, "heads": 2})).eval()
    table = network.embeddings.word_embeddings.weight
    kept = smaller.embeddings.word_embeddings.weight
    columns = [next(c for c in range(24) if torch.equal(table[:, c], kept[:, k])) for k in range(16)]
    assert columns == sorted(columns)


def test_tied_weights_are_one_parameter_and_come_back_from_a_file(tmp_path: Path) -> None:
    network, other = built("gpt"), built("gpt", seed=2)
    assert (
        parameter_count(network) == family_for("gpt", RUNNING).price(family_for("gpt", RUNNING).canonical(SMALL)).params
    )
    save_weights(network, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert other.classifier.weight is other.embeddings.word_embeddings.weight
    assert torch.equal(other(tokens()), network(tokens()))


@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_an_exported_program_takes_texts_of_any_length(family: str) -> None:
    network = built(family)
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=LENGTH)
    sizes = {0: batch, 1: length}
    inputs = {"tokens": tokens(2, 5)} | ({"mask": torch.ones(2, 5).long()} if family == "bert" else {})
    shapes = dict.fromkeys(inputs, sizes)
    program = torch.export.export(network, (), inputs, dynamic_shapes=shapes)
    for count, many in ((1, 3), (4, LENGTH)):
        given = {"tokens": tokens(count, many), "mask": torch.ones(count, many).long()}
        given = {name: given[name] for name in inputs}
        torch.testing.assert_close(program.module()(**given), network(**given))
